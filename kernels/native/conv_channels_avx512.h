// Convolutions of each channel with a kernel of its own, 64 channels at a time. Four
// neighbouring taps of a channel are brought together for the instruction that adds four
// products: `deal`. Where windows of three move by one pixel, four pixels of a line serve
// two positions. Of a block of 32 channels or fewer two positions (or pairs) lie in a
// vector, of 16 or fewer four: their number is `kParts`.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "conv_direct.h"
#include "conv_rows.h"
#include "unrolled.h"
#include "vector_avx512.h"

namespace jcompress {
namespace {

inline __m512i dot(__m512i sums, __m512i x, __m512i w) {
  return Avx512::dot_bytes(sums, x, w);
}

// Sums in the order of `deal`, in which quarter i has the channels 4 i to 4 i + 3 of every
// sixteen, to the order of the channels.
[[gnu::always_inline]] inline void store_channels(const __m512i (&s)[4], int32_t* out) {
  const __m512i a = _mm512_shuffle_i32x4(s[0], s[1], 0x44);
  const __m512i b = _mm512_shuffle_i32x4(s[2], s[3], 0x44);
  const __m512i c = _mm512_shuffle_i32x4(s[0], s[1], 0xee);
  const __m512i d = _mm512_shuffle_i32x4(s[2], s[3], 0xee);
  _mm512_store_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
  _mm512_store_si512(out + 16, _mm512_shuffle_i32x4(a, b, 0xdd));
  _mm512_store_si512(out + 32, _mm512_shuffle_i32x4(c, d, 0x88));
  _mm512_store_si512(out + 48, _mm512_shuffle_i32x4(c, d, 0xdd));
}

// Positions in a vector of a block's channels.
inline int parts_of(const ConvBlock& b) { return b.count <= 16 ? 4 : b.count <= 32 ? 2 : 1; }

// The channel of a lane of a quarter.
inline int channel_of(int quarter, int lane, int parts) {
  return (lane / 4 * 16 + 4 * quarter + lane % 4) % (64 / parts);
}

// So many channels of as many positions, `stride` bytes from one to the next.
template <int kParts>
[[gnu::always_inline]] inline __m512i load_parts(const int8_t* x, int64_t stride) {
  if constexpr (kParts == 1) {
    return _mm512_loadu_si512(x);
  } else if constexpr (kParts == 2) {
    const auto half = [&](int i) JCOMPRESS_INLINE {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * stride));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1);
  } else {
    const auto quarter = [&](int i) JCOMPRESS_INLINE {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * stride));
    };
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
    const __m256i high =
        _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
}

// The taps t to t + 3 of channels, `taps` bytes apart; of fewer than four the rest is 0.
[[gnu::always_inline]] inline __m512i gather_taps(const int8_t* values, __m512i channels,
                                                  __mmask16 some, int64_t t,
                                                  int64_t taps) {
  const __m512i places =
      _mm512_mullo_epi32(channels, _mm512_set1_epi32(static_cast<int32_t>(taps)));
  const __m512i none = _mm512_setzero_si512();
  const int64_t missing = std::max<int64_t>(0, t + 4 - taps);
  const __m512i four =
      _mm512_mask_i32gather_epi32(none, some, places, values + t - missing, 1);
  return _mm512_srlv_epi32(four, _mm512_set1_epi32(static_cast<int32_t>(8 * missing)));
}

// The images have 128 more, unsigned. Packed as [4 taps][64 bytes of each quarter of the
// channels], with `pairs` as [line][first of two positions, second][quarter][64 bytes].
void pack_channels(const ConvImages& g, const ConvBlock& b) {
  const int64_t taps = g.runs;
  const int parts = parts_of(b);
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums[4];
  each<4>([&](auto j) JCOMPRESS_INLINE {
    sums[j] = _mm512_setzero_si512();
    const __m512i all = _mm512_add_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51),
        _mm512_set1_epi32(4 * j));
    const __m512i channels = _mm512_and_si512(all, _mm512_set1_epi32(64 / parts - 1));
    const __mmask16 some = _mm512_cmplt_epi32_mask(channels, _mm512_set1_epi32(b.count));
    const auto taken = [&](int64_t t) JCOMPRESS_INLINE {
      if (taps >= 4) return gather_taps(b.values, channels, some, t, taps);
      alignas(64) int8_t bytes[64] = {};
      for (int i = 0; i < 16; ++i) {
        const int channel = channel_of(j, i, parts);
        if (channel < b.count) std::memcpy(bytes + 4 * i, b.values + channel * taps, taps);
      }
      return _mm512_load_si512(bytes);
    };
    if (g.pairs) {
      for (int64_t line = 0; 3 * line < taps; ++line) {
        const __m512i first =
            _mm512_and_si512(taken(3 * line), _mm512_set1_epi32(0x00ffffff));
        sums[j] = dot(sums[j], ones, first);
        int8_t* to = b.packed + line * 512 + j * 64;
        _mm512_store_si512(to, first);
        _mm512_store_si512(to + 256, _mm512_slli_epi32(first, 8));
      }
    } else {
      for (int64_t t = 0; t < taps; t += 4) {
        const __m512i four = taken(t);
        sums[j] = dot(sums[j], ones, four);
        _mm512_store_si512(b.packed + (t + j) * 64, four);
      }
    }
  });
  store_channels(sums, b.sums);
}

// Four bytes of each of 64 channels together: quarter i gets the channels 4 i to 4 i + 3
// of every sixteen.
[[gnu::always_inline]] inline void deal(const __m512i (&taps)[4], __m512i (&out)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(taps[0], taps[1]);
  const __m512i high01 = _mm512_unpackhi_epi8(taps[0], taps[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(taps[2], taps[3]);
  const __m512i high23 = _mm512_unpackhi_epi8(taps[2], taps[3]);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}

// Adds the taps of a vector's positions. kTaps: as many, or 0 for any number.
template <int kParts, int kTaps>
[[gnu::always_inline]] inline void add_position(const ConvImages& g, const int8_t* x,
                                                const int8_t* w, __m512i (&sums)[4]) {
  const int64_t taps = kTaps ? kTaps : g.runs;
  const auto four = [&](int64_t i) JCOMPRESS_INLINE {
    __m512i in[4], dealt[4];
    each<4>([&](auto t) JCOMPRESS_INLINE {
      const int64_t tap = 4 * i + t;
      in[t] = tap < taps ? load_parts<kParts>(x + g.offsets[tap], g.stride)
                         : _mm512_setzero_si512();
    });
    deal(in, dealt);
    each<4>([&](auto j) JCOMPRESS_INLINE {
      sums[j] = dot(sums[j], dealt[j], _mm512_load_si512(w + (4 * i + j) * 64));
    });
  };
  if constexpr (kTaps > 0) {
    each<(kTaps + 3) / 4>([&](auto i) JCOMPRESS_INLINE { four(int64_t{i}); });
  } else {
    for (int64_t i = 0; 4 * i < taps; ++i) four(i);
  }
}

// Adds the taps of two neighbouring positions, of each pair in a vector.
template <int kParts>
[[gnu::always_inline]] inline void add_pair(const ConvImages& g, const int8_t* x,
                                            const int8_t* w, __m512i (&one)[4],
                                            __m512i (&other)[4]) {
  for (int64_t tap = 0; tap < g.runs; tap += 3, w += 512) {
    const int8_t* from = x + g.offsets[tap];
    __m512i in[4], dealt[4];
    each<4>([&](auto t) JCOMPRESS_INLINE { 
      in[t] = load_parts<kParts>(from + t * g.pixel, 2 * g.stride);
    });
    deal(in, dealt);
    each<4>([&](auto j) JCOMPRESS_INLINE {
      one[j] = dot(one[j], dealt[j], _mm512_load_si512(w + j * 64));
      other[j] = dot(other[j], dealt[j], _mm512_load_si512(w + 256 + j * 64));
    });
  }
}

// Calls `store(position, step, count, sums)` for positions row0 to row1 of a block's
// channels: of `count` positions in the vectors, each `step` after the one before. Sums
// begin with `start`, in the order of `deal`.
template <int kParts, class Store>
[[gnu::always_inline]] inline void through_parts(const ConvImages& g, const ConvBlock& b,
                                                 const __m512i (&start)[4], int64_t row0,
                                                 int64_t row1, Store&& store) {
  through_lines<int8_t>(g, b, row0, row1, [&](int64_t m, const int8_t* x, int64_t count)
                                              JCOMPRESS_INLINE {
    if (g.pairs) {
      constexpr int kStep = 2 * kParts;
      for (int64_t i = 0; i < count; i += kStep, x += kStep * g.stride) {
        __m512i one[4], other[4];
        each<4>([&](auto j) JCOMPRESS_INLINE { one[j] = other[j] = start[j]; });
        add_pair<kParts>(g, x, b.packed, one, other);
        const int64_t left = count - i;
        store(m + i, 2, std::min<int64_t>(kParts, (left + 1) / 2), one);
        if (left > 1) store(m + i + 1, 2, std::min<int64_t>(kParts, left / 2), other);
      }
      return;
    }
    for (int64_t i = 0; i < count; i += kParts, x += kParts * g.stride) {
      __m512i sums[4];
      each<4>([&](auto j) JCOMPRESS_INLINE { sums[j] = start[j]; });
      if (g.runs == 9) {
        add_position<kParts, 9>(g, x, b.packed, sums);
      } else {
        add_position<kParts, 0>(g, x, b.packed, sums);
      }
      store(m + i, 1, std::min<int64_t>(kParts, count - i), sums);
    }
  });
}

template <class Store>
[[gnu::always_inline]] inline void through_channels(const ConvImages& g, const ConvBlock& b,
                                                    const __m512i (&start)[4], int64_t row0,
                                                    int64_t row1, Store&& store) {
  switch (parts_of(b)) {
    case 4:
      return through_parts<4>(g, b, start, row0, row1, store);
    case 2:
      return through_parts<2>(g, b, start, row0, row1, store);
    default:
      return through_parts<1>(g, b, start, row0, row1, store);
  }
}

}  // namespace
}  // namespace jcompress
