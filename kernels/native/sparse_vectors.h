// How codes of vectors become vectors of floats: each code names an entry of a table,
// and the entries of several tables are added up. Tables lie in the first cache, so
// that an entry is a load; shorter ones than a part of a register are put together.
#pragma once

#include <cstring>
#include <optional>

#include "product_kernels.h"
#include "sparse_decode.h"

namespace jcompress {
namespace {

// Eight codes of each table a step. `kCodes` tables, or as many as the cursor says if
// it is 0; entries of `kLength` floats.
template <class V, int kLength, int kCodes>
struct Vectors {
  static constexpr int kTogether = 8;
  static constexpr int kStep = kTogether * kLength;
  static constexpr int kParts = kStep / V::kLanes;
  static constexpr int64_t kAtOnce = V::kLanes == 16 ? 8 : 4;
  static constexpr int kMostCodes = kCodes ? kCodes : 4;
  // A step reads a word of each table, however few its bits.
  static constexpr int kSlack = 8;
  static constexpr int outputs(int) { return 2; }
  static constexpr int input(int part, int lane) { return part * V::kLanes + lane; }

  struct Cursor {
    const uint8_t* codes;
    const float* tables;
    int64_t plane;  // bytes from the codes of one table to those of the next
    int64_t table;  // floats of a table
    int32_t bits;
    int32_t count;
  };
  struct Spare {
    Buffer<uint8_t> codes;
    explicit Spare(const CodedWeight& w) : codes(w.stored + kSlack) {}
  };
  struct State {
    uint64_t words[kMostCodes];
  };

  static bool start(const CodedWeight& w, int64_t output, Cursor& c,
                    std::optional<Spare>& spare) {
    c.codes = static_cast<const uint8_t*>(w.values) + output * w.stored;
    c.tables = w.tables;
    c.plane = w.stored / w.codes;
    c.table = int64_t{kLength} << w.bits;
    c.bits = w.bits;
    c.count = w.codes;
    for (int64_t at = 0; at < w.stored; at += kLine) {
      call_ahead(c.codes + at, kQuad * w.stored);
    }
    if ((w.outputs - output - 1) * w.stored < kSlack) {
      // Behind the last rows there is nothing that may be read.
      spare.emplace(w);
      std::memcpy(spare->codes.data(), c.codes, w.stored);
      std::memset(spare->codes.data() + w.stored, 0, kSlack);
      c.codes = spare->codes.data();
    }
    return true;
  }
  // Inputs are laid out in whole steps.
  static void tail(const CodedWeight&, int64_t, Cursor&, uint8_t*) {}

  static State open(Cursor& c, int64_t) {
    State state;
    over(c, [&](auto m) JCOMPRESS_INLINE {
      state.words[m] = load_word(c.codes + m * c.plane);
    });
    c.codes += c.bits;
    return state;
  }

  // `f(m)` for each table.
  template <class F>
  static void over(const Cursor& c, F&& f) {
    if constexpr (kCodes) {
      each<kCodes>(f);
    } else {
      for (int m = 0; m < c.count; ++m) f(m);
    }
  }

  // The sum of the entries of the next vector, each read by `load(entry)`.
  template <class Load>
  static auto next(State& state, const Cursor& c, Load&& load) {
    const uint64_t mask = (uint64_t{1} << c.bits) - 1;
    // A class, since attributes of a vector are lost on a template argument.
    struct Sum {
      decltype(load(c.tables)) all;
    } sum{load(c.tables + (state.words[0] & mask) * kLength)};
    over(c, [&](auto m) JCOMPRESS_INLINE {
      if (m > 0) {
        const float* table = c.tables + m * c.table;
        sum.all = sum.all + load(table + (state.words[m] & mask) * kLength);
      }
      state.words[m] >>= c.bits;
    });
    return sum.all;
  }

#if defined(__AVX2__)
  static __m128 two(State& state, const Cursor& c) {
    return next(state, c, [](const float* entry) JCOMPRESS_INLINE {
      return _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(entry)));
    });
  }
  static __m128 four(State& state, const Cursor& c) {
    if constexpr (kLength == 2) {
      const __m128 low = two(state, c);
      return _mm_movelh_ps(low, two(state, c));
    } else {
      return next(state, c, [](const float* entry) JCOMPRESS_INLINE {
        return _mm_load_ps(entry);
      });
    }
  }
  static __m256 eight(State& state, const Cursor& c) {
    if constexpr (kLength == 8) {
      return next(state, c, [](const float* entry) JCOMPRESS_INLINE {
        return _mm256_load_ps(entry);
      });
    } else {
      const __m128 low = four(state, c);
      return _mm256_insertf128_ps(_mm256_castps128_ps256(low), four(state, c), 1);
    }
  }
  template <int kPart>
  static typename V::F part(State& state, const Cursor& c) {
    if constexpr (V::kLanes == 8) {
      return eight(state, c);
    } else {
#if defined(__AVX512F__)
      const __m256 low = eight(state, c);
      const __m512d wide = _mm512_castpd256_pd512(_mm256_castps_pd(low));
      const __m256d high = _mm256_castps_pd(eight(state, c));
      return _mm512_castpd_ps(_mm512_insertf64x4(wide, high, 1));
#endif
    }
  }
#else
  template <int kPart>
  static typename V::F part(State& state, const Cursor& c) {
    static_assert(V::kLanes == 4);
    if constexpr (kLength == 2) {
      const auto pair = [](const float* entry) {
        return typename V::F{entry[0], entry[1], 0.0f, 0.0f};
      };
      const typename V::F low = next(state, c, pair), high = next(state, c, pair);
      return typename V::F{low[0], low[1], high[0], high[1]};
    } else if constexpr (kLength == 4) {
      return next(state, c, [](const float* entry) { return V::load(entry); });
    } else {
      // Two parts a vector: the first leaves the codes for the second.
      const State kept = state;
      const auto half = [](const float* entry) {
        return V::load(entry + 4 * (kPart % 2));
      };
      const typename V::F sum = next(state, c, half);
      if (kPart % 2 == 0) state = kept;
      return sum;
    }
  }
#endif
};

}  // namespace
}  // namespace jcompress
