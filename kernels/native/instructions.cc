#include "instructions.h"

#include <cstdlib>
#include <cstring>

#include "product.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace jcompress {
namespace {

constexpr Instructions kAll[] = {
    Instructions::kNeon,       Instructions::kAmxInt8, Instructions::kAvx512Vbmi,
    Instructions::kAvx512Vnni, Instructions::kAvxVnni, Instructions::kAvx2,
    Instructions::kGeneric,
};

#if defined(__x86_64__)
// Whether there are the tile registers of AMX, given what CPUID and XGETBV say, and the
// system lets this process use them, which it has to ask for.
bool has_tiles([[maybe_unused]] unsigned features, [[maybe_unused]] unsigned states) {
#if defined(JCOMPRESS_EMULATED_TILES)
  return amx_int8_products() != nullptr;
#elif defined(__linux__)
  constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kConfigState = 1u << 17, kDataState = 1u << 18;
  if ((features & (kTile | kInt8)) != (kTile | kInt8)) return false;
  if ((states & (kConfigState | kDataState)) != (kConfigState | kDataState)) return false;
  if (amx_int8_products() == nullptr) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

struct Features {
  bool avx2 = false, avx_vnni = false, avx512_vnni = false, avx512_vbmi = false;
  bool amx_int8 = false;

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
    const bool fma = c & bit_FMA, f16c = c & bit_F16C;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool ymm = (low & 0x06) == 0x06, zmm = (low & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    avx2 = ymm && fma && f16c && (b & bit_AVX2) && (b & bit_BMI2);
    const unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    avx512_vnni = avx2 && zmm && (b & wanted) == wanted && (c & bit_AVX512VNNI);
    avx512_vbmi = avx512_vnni && (c & bit_AVX512VBMI) && (c & (1u << 6));
    amx_int8 = avx512_vbmi && has_tiles(d, low);
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) avx_vnni = avx2 && (a & (1u << 4));
  }
};
#endif

Instructions choose() {
  const char* wanted = std::getenv("JCOMPRESS_INSTRUCTIONS");
  bool below = wanted == nullptr || *wanted == '\0';
  for (Instructions set : kAll) {
    below = below || std::strcmp(wanted, instructions_name(set)) == 0;
    if (below && has_instructions(set)) return set;
  }
  return Instructions::kGeneric;
}

}  // namespace

bool has_instructions(Instructions set) {
#if defined(__x86_64__)
  static const Features features;
  switch (set) {
    case Instructions::kAvx2:
      return features.avx2;
    case Instructions::kAvxVnni:
      return features.avx_vnni;
    case Instructions::kAvx512Vnni:
      return features.avx512_vnni;
    case Instructions::kAvx512Vbmi:
      return features.avx512_vbmi;
    case Instructions::kAmxInt8:
      return features.amx_int8;
    default:
      return set == Instructions::kGeneric;
  }
#elif defined(__aarch64__) && defined(__linux__)
  if (set == Instructions::kNeon) return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
  return set == Instructions::kGeneric;
#elif defined(__aarch64__) && defined(__APPLE__)
  return set == Instructions::kNeon || set == Instructions::kGeneric;
#else
  return set == Instructions::kGeneric;
#endif
}

Instructions chosen_instructions() {
  static const Instructions chosen = choose();
  return chosen;
}

Instructions vectors_of(Instructions set) {
  return set == Instructions::kAmxInt8 ? Instructions::kAvx512Vbmi : set;
}

const char* instructions_name(Instructions set) {
  switch (set) {
    case Instructions::kAvx2:
      return "avx2";
    case Instructions::kAvxVnni:
      return "avx_vnni";
    case Instructions::kAvx512Vnni:
      return "avx512_vnni";
    case Instructions::kAvx512Vbmi:
      return "avx512_vbmi";
    case Instructions::kAmxInt8:
      return "amx_int8";
    case Instructions::kNeon:
      return "neon";
    default:
      return "generic";
  }
}

const Products& products_of(Instructions set) {
  switch (set) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
      return *avx2_products();
    case Instructions::kAvxVnni:
      return *avx_vnni_products();
    case Instructions::kAvx512Vnni:
      return *avx512_vnni_products();
    case Instructions::kAvx512Vbmi:
      return *avx512_vbmi_products();
    case Instructions::kAmxInt8:
      return *amx_int8_products();
#elif defined(__aarch64__)
    case Instructions::kNeon:
      return *neon_products();
#endif
    default:
      return *generic_products();
  }
}

int64_t unit_of(const Weight& w) {
  constexpr int64_t kMostInputs = 32768;  // of which int32 holds the sum of products
  constexpr int64_t kMostUnit = 512;
  if (w.groups == 1) return w.inputs <= kMostInputs ? 64 : 0;
  const int64_t size = w.group_size();
  if (size % 4) return 0;
  const int64_t unit = size % 8 ? 2 * size : size;
  return unit <= kMostUnit ? unit : 0;
}

int64_t narrow_block(const Weight& w) {
  constexpr int64_t kMost = 32;  // of which sixteen bits hold the sum of products
  if (w.groups == 1) return kMost;
  const int64_t size = w.group_size(), parts = (size + kMost - 1) / kMost;
  return size % (4 * parts) ? 0 : size / parts;
}

Grouping grouping_of(const Cut& cut, int64_t inputs, int64_t groups) {
  if (groups == 1) return Grouping::kNone;
  const int64_t size = inputs / groups;
  if (size % cut.step_inputs() == 0) return Grouping::kSteps;
  const bool lanes = cut.step_inputs() % size == 0 && size % cut.lane_span() == 0;
  return lanes ? Grouping::kLanes : Grouping::kUnable;
}

}  // namespace jcompress

// Whether this processor and this build have the instruction set of that name.
extern "C" JCOMPRESS_EXPORT int32_t jcompress_has_instructions(const char* name) {
  for (jcompress::Instructions set : jcompress::kAll) {
    if (std::strcmp(name, jcompress::instructions_name(set)) == 0) {
      return jcompress::has_instructions(set);
    }
  }
  return 0;
}
