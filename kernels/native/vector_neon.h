// Vectors of NEON with the dot products of Armv8.2.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace jcompress {
namespace {

struct Neon {
  using I = int32x4_t;
  using F = float32x4_t;
  static constexpr int kBytes = 16;
  static constexpr int kLanes = 4;

  static constexpr int outputs(int rows, bool grouped) {
    return !grouped || rows <= 3 ? 4 : 2;
  }

  static I zero() { return vdupq_n_s32(0); }
  static F zero_float() { return vdupq_n_f32(0); }
  static F broadcast(float x) { return vdupq_n_f32(x); }
  static I load(const void* p) {
    return vreinterpretq_s32_s8(vld1q_s8(static_cast<const int8_t*>(p)));
  }
  static I first(int32_t x) { return vsetq_lane_s32(x, vdupq_n_s32(0), 0); }
  static F add_scaled(F total, I sums, F scale) {
    return vfmaq_f32(total, vcvtq_f32_s32(sums), scale);
  }

  // Of products of many rows.
  static constexpr bool kPartsTogether = false;
  static constexpr bool kDealsSteps = false;
  static constexpr bool kIntegerPanels = false;
  static constexpr bool kStrips = false;
  static constexpr int kFloatOutputs = 12;
  static constexpr int64_t kFloatRows = 0, kGroupedFloatRows = 16;

  static F load_float(const float* p) { return vld1q_f32(p); }
  static void store_float(float* p, F x) { vst1q_f32(p, x); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static void transpose(float (&square)[4][4]) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const float x = square[i][j];
        square[i][j] = square[j][i];
        square[j][i] = x;
      }
    }
  }

  static I lane_groups(int groups) {
    const int32_t index[4] = {0, groups / 4, 2 * groups / 4, 3 * groups / 4};
    return vld1q_s32(index);
  }
  static F scale_lanes(const float* scales, int count, I index) {
    int32_t at[4];
    float out[4] = {};
    vst1q_s32(at, index);
    for (int i = 0; i < 4; ++i) {
      if (at[i] < count) out[i] = scales[at[i]];
    }
    return vld1q_f32(out);
  }
  static I zero_lanes(const int8_t* zeros, int count, I index, int offset) {
    int32_t at[4], out[4] = {};
    vst1q_s32(at, index);
    for (int i = 0; i < 4; ++i) {
      if (at[i] < count) out[i] = zeros[at[i]] + offset;
    }
    return vld1q_s32(out);
  }
  static I minus_product(I a, I b) { return vnegq_s32(vmulq_s32(a, b)); }

  template <int kCount>
  static void add_sums(const I (&v)[kCount], int32_t* out) {
    for (int n = 0; n < kCount; ++n) out[n] += vaddvq_s32(v[n]);
  }
  template <int kCount>
  static void add_totals(const F (&v)[kCount], float* out) {
    for (int n = 0; n < kCount; ++n) out[n] += vaddvq_f32(v[n]);
  }

  template <int kBits>
  struct Format {
    static constexpr int kParts = kBits == 4 ? 2 : kBits == 2 ? 4 : 1;
    static constexpr int kPartInputs = 16;
    static constexpr int kOffset = 0;
    static constexpr int kStepBytes = kParts * kPartInputs * kBits / 8;

    static I load(const uint8_t* p) {
      if constexpr (kStepBytes == 16) {
        return Neon::load(p);
      } else {
        uint8_t part[16] = {};
        std::memcpy(part, p, kStepBytes);
        return Neon::load(part);
      }
    }
    template <int kPart>
    static I decode(I raw) {
      const int8x16_t bytes = vreinterpretq_s8_s32(raw);
      if constexpr (kBits == 8) {
        return raw;
      } else if constexpr (kBits == 3) {
        uint8_t in[16];
        int8_t out[16];
        vst1q_u8(in, vreinterpretq_u8_s32(raw));
        for (int i = 0; i < 2; ++i) {
          const uint32_t word = in[3 * i] | in[3 * i + 1] << 8 | in[3 * i + 2] << 16;
          for (int j = 0; j < 8; ++j) {
            out[8 * i + j] = static_cast<int8_t>((((word >> (3 * j)) & 7) ^ 4) - 4);
          }
        }
        return Neon::load(out);
      } else {
        constexpr int kLeft = 8 - kBits * (kPart + 1);
        const int8x16_t top = kLeft ? vshlq_n_s8(bytes, kLeft) : bytes;
        return vreinterpretq_s32_s8(vshrq_n_s8(top, 8 - kBits));
      }
    }
    static I dot(I sums, I weight, I x) {
      return vdotq_s32(sums, vreinterpretq_s8_s32(weight), vreinterpretq_s8_s32(x));
    }
  };
};

}  // namespace
}  // namespace jcompress
