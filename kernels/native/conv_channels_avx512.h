// Convolutions of each channel with a kernel of its own, 64 channels at a time. Four
// neighbouring taps of a channel are brought together for the instruction that adds four
// products: `deal`. Where windows of three move by one pixel, four pixels of a line serve
// two positions.
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

// The channel of a lane of a quarter.
inline int channel_of(int quarter, int lane) { return lane / 4 * 16 + 4 * quarter + lane % 4; }

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
  const __m512i ones = _mm512_set1_epi8(1);
  __m512i sums[4];
  each<4>([&](auto j) JCOMPRESS_INLINE {
    sums[j] = _mm512_setzero_si512();
    const __m512i channels = _mm512_add_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 32, 33, 34, 35, 48, 49, 50, 51),
        _mm512_set1_epi32(4 * j));
    const __mmask16 some = _mm512_cmplt_epi32_mask(channels, _mm512_set1_epi32(b.count));
    const auto taken = [&](int64_t t) JCOMPRESS_INLINE {
      if (taps >= 4) return gather_taps(b.values, channels, some, t, taps);
      alignas(64) int8_t bytes[64] = {};
      for (int i = 0; i < 16; ++i) {
        const int channel = channel_of(j, i);
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

// Adds the taps of one position. kTaps: as many, or 0 for any number.
template <int kTaps>
[[gnu::always_inline]] inline void add_position(const ConvImages& g, const int8_t* x,
                                                const int8_t* w, __m512i (&sums)[4]) {
  const int64_t taps = kTaps ? kTaps : g.runs;
  const auto four = [&](int64_t i) JCOMPRESS_INLINE {
    __m512i in[4], dealt[4];
    each<4>([&](auto t) JCOMPRESS_INLINE {
      const int64_t tap = 4 * i + t;
      in[t] = tap < taps ? _mm512_loadu_si512(x + g.offsets[tap]) : _mm512_setzero_si512();
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

// Adds the taps of two neighbouring positions.
[[gnu::always_inline]] inline void add_pair(const ConvImages& g, const int8_t* x,
                                            const int8_t* w, __m512i (&one)[4],
                                            __m512i (&other)[4]) {
  for (int64_t tap = 0; tap < g.runs; tap += 3, w += 512) {
    const int8_t* from = x + g.offsets[tap];
    __m512i in[4], dealt[4];
    each<4>([&](auto t) JCOMPRESS_INLINE { in[t] = _mm512_loadu_si512(from + t * g.pixel); });
    deal(in, dealt);
    each<4>([&](auto j) JCOMPRESS_INLINE {
      one[j] = dot(one[j], dealt[j], _mm512_load_si512(w + j * 64));
      other[j] = dot(other[j], dealt[j], _mm512_load_si512(w + 256 + j * 64));
    });
  }
}

// Calls `store(position, sums)` for each of positions row0 to row1 of a block's channels.
// Sums begin with `start`, in the order of `deal`.
template <class Store>
[[gnu::always_inline]] inline void through_channels(const ConvImages& g, const ConvBlock& b,
                                                    const __m512i (&start)[4], int64_t row0,
                                                    int64_t row1, Store&& store) {
  through_lines<int8_t>(g, b, row0, row1, [&](int64_t m, const int8_t* x, int64_t count)
                                              JCOMPRESS_INLINE {
    if (g.pairs) {
      for (int64_t i = 0; i < count; i += 2, x += 2 * g.stride) {
        __m512i one[4], other[4];
        each<4>([&](auto j) JCOMPRESS_INLINE { one[j] = other[j] = start[j]; });
        add_pair(g, x, b.packed, one, other);
        store(m + i, one);
        if (i + 1 < count) store(m + i + 1, other);
      }
      return;
    }
    for (int64_t i = 0; i < count; ++i, x += g.stride) {
      __m512i sums[4];
      each<4>([&](auto j) JCOMPRESS_INLINE { sums[j] = start[j]; });
      if (g.runs == 9) {
        add_position<9>(g, x, b.packed, sums);
      } else {
        add_position<0>(g, x, b.packed, sums);
      }
      store(m + i, sums);
    }
  });
}

}  // namespace
}  // namespace jcompress
