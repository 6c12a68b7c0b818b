// How coded rows become vectors of floats. A decoder `D` takes `kStep` inputs a step
// and turns them into `kParts` vectors; lane l of vector p is input `input(p, l)` of
// the step, and activations are packed in that order. Up to `kAtOnce` rows of
// activations meet the vectors as they are decoded. `ahead` says how many bytes further
// the values lie that come when this row is done; they are called from memory in time.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "sparse.h"
#include "sparse_floats.h"

namespace jcompress {
namespace {

inline void call_ahead(const void* p, int64_t ahead) {
  // To the second cache. No pointer arithmetic: it may lie behind the array.
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + ahead), 0, 2);
}

// Rows of floats in the order of their inputs.
template <class V>
struct Plain {
  static constexpr int kParts = 1;
  static constexpr int kStep = V::kLanes;
  static constexpr int64_t kAtOnce = 0;
  struct Cursor {
    const float* values;
  };
  using State = const float*;
  // The kernel of many rows: as many sums as there are registers for.
  static constexpr int outputs(int) { return V::kLanes == 16 ? 4 : 2; }

  static State open(Cursor& c, int64_t) {
    const float* at = c.values;
    c.values += V::kLanes;
    return at;
  }
  template <int kPart>
  static typename V::F part(State state, Cursor&) {
    return V::load(state);
  }
};

inline uint64_t load_word(const void* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

// The bits of a mask behind its last whole word.
inline uint64_t last_mask_word(const uint8_t* mask, int64_t inputs) {
  const int64_t whole = inputs / 64, rest = inputs % 64;
  uint64_t word = 0;
  std::memcpy(&word, mask + 8 * whole, (rest + 7) / 8);
  return load_word(&word) & ((uint64_t{1} << rest) - 1);
}

inline int64_t count_kept(const uint8_t* mask, int64_t inputs) {
  int64_t kept = 0;
  for (int64_t i = 0; i < inputs / 64; ++i) {
    kept += __builtin_popcountll(load_word(mask + 8 * i));
  }
  if (inputs % 64) kept += __builtin_popcountll(last_mask_word(mask, inputs));
  return kept;
}

// The kept inputs of [first, last).
inline int64_t count_kept(const uint8_t* mask, int64_t first, int64_t last) {
  int64_t kept = 0;
  for (; first < last && first % 8; ++first) kept += mask[first / 8] >> first % 8 & 1;
  for (; first + 64 <= last; first += 64) {
    kept += __builtin_popcountll(load_word(mask + first / 8));
  }
  for (; first < last; ++first) kept += mask[first / 8] >> first % 8 & 1;
  return kept;
}

// Integers `first` and those after it, of a row of 4 bits each.
inline void widen_nibbles(const uint8_t* bytes, int64_t first, int64_t count,
                          int8_t* out) {
  const auto low = [](uint8_t byte) {
    return static_cast<int8_t>(static_cast<int8_t>(byte << 4) >> 4);
  };
  const auto high = [](uint8_t byte) {
    return static_cast<int8_t>(static_cast<int8_t>(byte) >> 4);
  };
  bytes += first / 2;
  if (first % 2 && count) {
    *out++ = high(*bytes++);
    --count;
  }
  for (int64_t i = 0; i < count / 2; ++i) {
    out[2 * i] = low(bytes[i]);
    out[2 * i + 1] = high(bytes[i]);
  }
  if (count % 2) out[count - 1] = low(bytes[count / 2]);
}

// The `count` kept weights of an output of kMaskScaled as floats.
inline void scale_kept(const CodedWeight& w, int64_t output, int64_t count,
                       int8_t* room, float* out) {
  const int64_t first = w.first(output), size = w.inputs / w.groups;
  const int8_t* whole = static_cast<const int8_t*>(w.values) + first;
  if (w.bits_kept == 4) {
    widen_nibbles(static_cast<const uint8_t*>(w.values), first, count, room);
    whole = room;
  }
  const uint8_t* mask = w.mask + output * w.mask_bytes();
  const float* scales = w.scales + output * w.groups;
  for (int64_t g = 0, at = 0; g < w.groups; ++g) {
    const int64_t end =
        w.groups == 1 ? count : at + count_kept(mask, g * size, (g + 1) * size);
    for (int64_t t = at; t < end; ++t) out[t] = whole[t] * scales[g];
    at = end;
  }
}

// The kept values of a row, under a mask of bits.
template <class V, class T>
struct Masked {
  static constexpr int kStep = 64;
  static constexpr int kParts = kStep / V::kLanes;
  static constexpr int64_t kAtOnce = V::kLanes == 16 ? 16 : 4;
  // A step reads so many values, whatever its mask keeps.
  static constexpr int kSlack = 64;
#if defined(__AVX512VBMI2__)
  static constexpr bool kBytes = sizeof(T) == 1;
#else
  static constexpr bool kBytes = false;
#endif
  struct Cursor {
    const uint8_t* mask;
    const T* values;
  };
  struct Spare {
    Buffer<T> values;
    explicit Spare(int64_t count) : values(count + kSlack) {}
  };
  static constexpr int outputs(int rows) { return V::outputs(rows); }
  static constexpr int input(int part, int lane) { return part * V::kLanes + lane; }

  static bool start(const CodedWeight& w, int64_t output, Cursor& c,
                    std::optional<Spare>& spare) {
    c.mask = w.mask + output * w.mask_bytes();
    const int64_t first = w.first(output), stored = w.kept(output);
    c.values = static_cast<const T*>(w.values) + first;
    if (count_kept(c.mask, w.inputs) > stored) return false;
    if (w.count - first < stored + kSlack) {
      // Behind the last rows there is nothing that may be read.
      spare.emplace(stored);
      std::memcpy(spare->values.data(), c.values, stored * sizeof(T));
      std::memset(spare->values.data() + stored, 0, kSlack * sizeof(T));
      c.values = spare->values.data();
    }
    return true;
  }
  static void tail(const CodedWeight& w, int64_t output, Cursor& c, uint8_t* rest) {
    const uint64_t word =
        last_mask_word(w.mask + output * w.mask_bytes(), w.inputs);
    for (int i = 0; i < 8; ++i) rest[i] = static_cast<uint8_t>(word >> (8 * i));
    c.mask = rest;
  }

#if defined(__AVX512VBMI2__)
  // A class, since attributes of a vector are lost on a template argument.
  struct Expanded {
    __m512i all;
  };
  using State = std::conditional_t<kBytes, Expanded, uint64_t>;
#else
  using State = uint64_t;
#endif
  static State open(Cursor& c, int64_t ahead) {
    const uint64_t word = load_word(c.mask);
    c.mask += 8;
    call_ahead(c.values, ahead);
    if (sizeof(T) == 4) call_ahead(c.values, ahead + kLine);
#if defined(__AVX512VBMI2__)
    if constexpr (kBytes) {
      const __m512i all =
          _mm512_maskz_expand_epi8(word, _mm512_loadu_si512(c.values));
      c.values += __builtin_popcountll(word);
      return Expanded{all};
    }
#endif
    if constexpr (!kBytes) return word;
  }
  template <int kPart>
  static typename V::F part(State state, Cursor& c) {
#if defined(__AVX512VBMI2__)
    if constexpr (kBytes) {
      const __m128i few = kPart == 0 ? _mm512_castsi512_si128(state.all)
                                     : _mm512_extracti32x4_epi32(state.all, kPart);
      return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(few));
    }
#endif
    if constexpr (!kBytes) {
      constexpr uint64_t kLanes = (uint64_t{1} << V::kLanes) - 1;
      const auto mask =
          static_cast<uint32_t>(state >> (kPart * V::kLanes) & kLanes);
      const typename V::F all = V::expand(c.values, mask);
      c.values += __builtin_popcount(mask);
      return all;
    }
  }
};

// The same of integers whose scales differ from group to group: they become floats once
// for all rows of activations.
template <class V>
struct MaskedScaled : Masked<V, float> {
  using Base = Masked<V, float>;
  using Cursor = typename Base::Cursor;
  using Spare = typename Base::Spare;

  static bool start(const CodedWeight& w, int64_t output, Cursor& c,
                    std::optional<Spare>& spare) {
    c.mask = w.mask + output * w.mask_bytes();
    const int64_t count = count_kept(c.mask, w.inputs);
    if (count > w.kept(output)) return false;
    spare.emplace(count);
    float* out = spare->values.data();
    Buffer<int8_t> room(w.bits_kept == 4 ? count : 0);
    scale_kept(w, output, count, room.data(), out);
    std::memset(out + count, 0, Base::kSlack * sizeof(float));
    c.values = out;
    return true;
  }
};

// What decoders of indices share: rows of whole bytes, a table for each output.
template <int kStepBytes>
struct Indexed {
  struct Cursor {
    const uint8_t* indices;
    const float* table;
  };
  struct Spare {};

  static bool start(const CodedWeight& w, int64_t output, Cursor& c,
                    std::optional<Spare>&) {
    c.indices = static_cast<const uint8_t*>(w.values) + output * w.stored;
    c.table = w.tables + output / w.outputs_per_table * w.table_floats();
    return true;
  }
  static void tail(const CodedWeight& w, int64_t output, Cursor& c, uint8_t* rest) {
    const int64_t whole = (w.stored - 1) / kStepBytes * kStepBytes;
    std::memset(rest, 0, kStepBytes);
    std::memcpy(rest,
                static_cast<const uint8_t*>(w.values) + output * w.stored + whole,
                w.stored - whole);
    c.indices = rest;
  }
};

// Indices of 4 bits into a table of 16 floats. A lane has the eight indices of one
// 32-bit word: the next vector is a shift away.
template <class V>
struct Nibbles : Indexed<4 * V::kLanes> {
  using Cursor = typename Indexed<4 * V::kLanes>::Cursor;
  static constexpr int kParts = 8;
  static constexpr int64_t kAtOnce = V::kLanes == 16 ? 16 : 4;
  static constexpr int kStep = 8 * V::kLanes;
  static constexpr int outputs(int rows) { return V::outputs(rows); }
  static constexpr int input(int part, int lane) { return 8 * lane + part; }

#if defined(__AVX512F__)
  struct State {
    __m512i raw;
    __m512 table;
  };
  static State open(Cursor& c, int64_t ahead) {
    call_ahead(c.indices, ahead);
    const State state{_mm512_loadu_si512(c.indices), _mm512_load_ps(c.table)};
    c.indices += 64;
    return state;
  }
  template <int kPart>
  static __m512 part(const State& state, Cursor&) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(state.raw, 4 * kPart), state.table);
  }
#elif defined(__AVX2__)
  using State = __m256i;
  static State open(Cursor& c, int64_t ahead) {
    call_ahead(c.indices, ahead);
    const State raw =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(c.indices));
    c.indices += 32;
    return raw;
  }
  template <int kPart>
  static __m256 part(State raw, Cursor& c) {
    const __m256i at = _mm256_srli_epi32(raw, 4 * kPart);
    const __m256i top = _mm256_slli_epi32(raw, 28 - 4 * kPart);
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(_mm256_load_ps(c.table), at),
                            _mm256_permutevar8x32_ps(_mm256_load_ps(c.table + 8), at),
                            _mm256_castsi256_ps(top));
  }
#else
  using State = const uint8_t*;
  static State open(Cursor& c, int64_t ahead) {
    call_ahead(c.indices, ahead);
    const uint8_t* at = c.indices;
    c.indices += 16;
    return at;
  }
  template <int kPart>
  static typename V::F part(State at, Cursor& c) {
    typename V::F v;
    for (int i = 0; i < 4; ++i) {
      v[i] = c.table[at[4 * i + kPart / 2] >> (4 * (kPart % 2)) & 15];
    }
    return v;
  }
#endif
};

// Indices of a byte into a table of 256 floats.
#if defined(__AVX512VBMI__)
// The table is four planes, one for each byte of a float.
template <class V>
struct Bytes : Indexed<64> {
  using Cursor = Indexed<64>::Cursor;
  static constexpr int kParts = 4;
  static constexpr int64_t kAtOnce = 4;
  static constexpr int kStep = 64;
  static constexpr int outputs(int rows) { return rows <= 2 ? 2 : 1; }
  static constexpr int input(int part, int lane) {
    return 16 * (lane / 4) + 4 * part + lane % 4;
  }
  struct State {
    __m512 values[4];
  };

  static __m512i plane(const float* table, int byte, __m512i at, __mmask64 high) {
    const char* p = reinterpret_cast<const char*>(table) + 256 * byte;
    const __m512i a = _mm512_load_si512(p), b = _mm512_load_si512(p + 64);
    const __m512i c = _mm512_load_si512(p + 128), d = _mm512_load_si512(p + 192);
    return _mm512_mask_blend_epi8(high, _mm512_permutex2var_epi8(a, at, b),
                                  _mm512_permutex2var_epi8(c, at, d));
  }
  static State open(Cursor& c, int64_t ahead) {
    call_ahead(c.indices, ahead);
    const __m512i at = _mm512_loadu_si512(c.indices);
    c.indices += 64;
    const __mmask64 high = _mm512_movepi8_mask(at);
    const __m512i a = plane(c.table, 0, at, high), b = plane(c.table, 1, at, high);
    const __m512i d = plane(c.table, 2, at, high), e = plane(c.table, 3, at, high);
    const __m512i low0 = _mm512_unpacklo_epi8(a, b), low1 = _mm512_unpackhi_epi8(a, b);
    const __m512i top0 = _mm512_unpacklo_epi8(d, e), top1 = _mm512_unpackhi_epi8(d, e);
    return {{_mm512_castsi512_ps(_mm512_unpacklo_epi16(low0, top0)),
             _mm512_castsi512_ps(_mm512_unpackhi_epi16(low0, top0)),
             _mm512_castsi512_ps(_mm512_unpacklo_epi16(low1, top1)),
             _mm512_castsi512_ps(_mm512_unpackhi_epi16(low1, top1))}};
  }
  template <int kPart>
  static __m512 part(const State& state, Cursor&) {
    return state.values[kPart];
  }
  static void lay(const float* values, float* out) {
    const char* from = reinterpret_cast<const char*>(values);
    char* to = reinterpret_cast<char*>(out);
    for (int i = 0; i < 256; ++i) {
      for (int byte = 0; byte < 4; ++byte) to[256 * byte + i] = from[4 * i + byte];
    }
  }
};
#else
template <class V>
struct Bytes : Indexed<V::kLanes> {
  using Cursor = typename Indexed<V::kLanes>::Cursor;
  static constexpr int kParts = 1;
  static constexpr int kStep = V::kLanes;
  static constexpr int64_t kAtOnce = 4;
  static constexpr int outputs(int rows) { return V::outputs(rows); }
  static constexpr int input(int, int lane) { return lane; }
  using State = const uint8_t*;

  static State open(Cursor& c, int64_t ahead) {
    call_ahead(c.indices, ahead);
    const uint8_t* at = c.indices;
    c.indices += V::kLanes;
    return at;
  }
  template <int>
  static typename V::F part(State at, Cursor& c) {
#if defined(__AVX512F__)
    const __m128i few = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(few), c.table, 4);
#elif defined(__AVX2__)
    const __m128i few = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at));
    return _mm256_i32gather_ps(c.table, _mm256_cvtepu8_epi32(few), 4);
#else
    return typename V::F{c.table[at[0]], c.table[at[1]], c.table[at[2]],
                         c.table[at[3]]};
#endif
  }
  static void lay(const float* values, float* out) {
    std::memcpy(out, values, CodedWeight::kTable * sizeof(float));
  }
};
#endif

}  // namespace
}  // namespace jcompress
