// Products of panels of integers with a weight that has one scale an output: the sums
// stay integers until the end.
#pragma once

#include <algorithm>
#include <cstring>

#include "floats.h"
#include "panel_weights.h"
#include "product.h"
#include "rows.h"

namespace jcompress {
namespace {

// A block of sixteen outputs, or as many as a core takes, with one or two panels.
struct ExactPiece {
  const uint8_t* w;  // unpacked, outputs `kStride` apart
  const int8_t* x;
  int64_t panel;     // bytes from one panel to the next
  int64_t quads;
  int32_t* sums;     // [panel][output of sixteen][lane]
  int64_t next;      // from the sums of sixteen outputs to those of the next
  bool fresh;        // the sums begin at zero
  // What is read next, so that memory is busy while this is multiplied: `stride` bytes
  // for each quad of inputs.
  const uint8_t* ahead;
  int64_t stride;
};

// What turns sums into results, filled up to whole vectors of outputs.
struct ExactEnds {
  alignas(64) int32_t shifts[kChunk] = {};
  alignas(64) int32_t whole[kChunk] = {};  // with zeros of the activations
  alignas(64) float scales[kChunk] = {};
  alignas(64) float biases[kChunk] = {};

  ExactEnds(const Weight& w, const Result& result, int64_t first, int64_t outputs) {
    for (int64_t n = 0; n < outputs; ++n) {
      shifts[n] = shift_of(w, first + n, 0);
      scales[n] = w.scales[first + n];
      if (result.bias) biases[n] = result.bias[first + n];
    }
  }
};

// The exact sum of row m, one digit, with outputs n to n + 15 of a chunk.
template <class V, bool kPlain>
[[gnu::always_inline]] inline typename V::I exact_sum(const Panels& p, const Weight& w,
                                                      const ExactEnds& ends,
                                                      const int32_t* lanes, int64_t m,
                                                      int32_t left, int64_t n) {
  typename V::I total = V::load(lanes);
  if constexpr (kPlain) {
    return V::subtract(total, V::broadcast_word(left * ends.shifts[0]));
  }
  const typename V::I shift = V::load(ends.shifts + n);
  total = V::subtract(total, V::multiply(shift, V::broadcast_word(left)));
  if (p.zero) {
    const typename V::I all = V::broadcast_word(static_cast<int32_t>(w.inputs));
    const typename V::I whole =
        V::subtract(V::load(ends.whole + n), V::multiply(all, shift));
    const typename V::I point = V::broadcast_word(zero_point(p.zero[m]));
    total = V::subtract(total, V::multiply(whole, point));
  }
  return total;
}

// `sums`: of a band, [sixteen outputs][digit][output][lane], sixteen outputs `next` from
// the sixteen before. kPlain: one digit, no zeros of either side.
template <class V, bool kPlain>
void finish_exact(const Panels& p, const Weight& w, const Result& result,
                  const ExactEnds& ends, int64_t first, int64_t outputs, int64_t band,
                  int64_t next, int32_t* sums) {
  constexpr int kLanes = V::kLanes, kSquare = kLanes * kLanes;
  constexpr int64_t kLine = 64;
  using F = typename V::F;
  using Square = float[kLanes][kLanes];
  const int digits = kPlain ? 1 : p.digits;
  const F digit = V::broadcast(1.0f / static_cast<float>(kBase));
  for (int64_t n = 0; n < outputs; n += kLanes) {
    for (int j = 0; j < digits; ++j) {
      V::transpose(*reinterpret_cast<Square*>(sums + n / kLanes * next + j * kSquare));
    }
  }
  const bool wide = result.dtype == Float::kF32;
  const int64_t m0 = band * kLanes, m1 = std::min(p.rows, m0 + kLanes);
  for (int64_t m = m0; m < m1; ++m) {
    const int32_t* left = p.sums + band * digits * kLanes + (m - m0);
    const F row_scale = V::broadcast(p.scale[m]);
    const int64_t start = m * w.outputs + first;
    // The lines that the same row of the next band is written to.
    for (int64_t i = 0; wide && i < outputs; i += kLine / 4) {
      __builtin_prefetch(reinterpret_cast<const void*>(
                             reinterpret_cast<uintptr_t>(result.y) +
                             static_cast<uintptr_t>(4 * (start + kLanes * w.outputs + i))),
                         1, 2);
    }
    for (int64_t n = 0; n < outputs; n += kLanes) {
      const int32_t* lanes = sums + n / kLanes * next + (m - m0) * kLanes;
      F number = V::to_float(exact_sum<V, kPlain>(p, w, ends, lanes + (digits - 1) * kSquare,
                                                  m, left[(digits - 1) * kLanes], n));
      for (int j = digits - 2; j >= 0; --j) {
        const F sum = V::to_float(
            exact_sum<V, kPlain>(p, w, ends, lanes + j * kSquare, m, left[j * kLanes], n));
        number = V::add(sum, V::times(number, digit));
      }
      number = V::times(V::times(number, row_scale), V::load_float(ends.scales + n));
      if (result.bias) number = V::add(number, V::load_float(ends.biases + n));
      write_vector<V>(number, result, start + n, outputs - n);
    }
  }
}

template <class V, class Core>
void multiply_exact(const Panels& p, const Weight& w, const Result& result,
                    int64_t first, int64_t last, int64_t band0, int64_t band1) {
  constexpr int kLanes = V::kLanes, kSquare = kLanes * kLanes;
  constexpr int kTake = Core::kExactOutputs;
  static_assert(kChunk % kTake == 0 && kFewOutputs % kTake == 0);
  const int64_t panel0 = band0 * p.digits, panel1 = band1 * p.digits;
  const int64_t panels = panel1 - panel0, next = panels * kSquare;
  const int64_t chunk = panels <= kFewPanels ? kFewOutputs : kChunk;
  const int64_t blocks = (p.inputs + kBlock - 1) / kBlock;
  const int64_t block = ((p.inputs + blocks - 1) / blocks + 63) / 64 * 64;
  Buffer<uint8_t> integers(chunk * kStride);
  Buffer<int32_t> sums(chunk / kLanes * next);
  std::memset(integers.data(), 0, chunk * kStride);
  Core core(p, w);
  for (int64_t n0 = first; n0 < last; n0 += chunk) {
    const int64_t outputs = std::min(chunk, last - n0);
    ExactEnds ends(w, result, n0, outputs);
    // Of the last chunk nothing is ahead but what it reads.
    const bool more = n0 + chunk < last;
    const uint8_t* ahead = w.values + (n0 + (more ? chunk : 0)) * w.row_bytes();
    for (int64_t k = 0; k < p.inputs; k += block) {
      const int64_t count = std::min(block, p.inputs - k);
      unpack<V>(w, n0, outputs, k, count, integers.data(), kStride);
      for (int64_t n = 0; p.zero && n < outputs; ++n) {
        const uint8_t* q = integers.data() + n * kStride;
        for (int64_t i = 0; i < count; ++i) ends.whole[n] += q[i];
      }
      ExactPiece piece{};
      piece.panel = p.panel_bytes();
      piece.quads = (count + 63) / 64 * 16;
      piece.next = next;
      piece.fresh = k == 0;
      for (int64_t panel = panel0; panel < panel1;) {
        const bool two = panel + 1 < panel1;
        piece.x = static_cast<const int8_t*>(p.packed) + panel * p.panel_bytes() +
                  k * kLanes;
        const bool fetches = more && panel == panel0;
        piece.stride = fetches ? kLanes * w.bits / 2 : 0;
        for (int64_t n = 0; n < outputs; n += kTake) {
          piece.w = integers.data() + n * kStride;
          piece.sums = sums.data() + n / kLanes * next + (panel - panel0) * kSquare;
          piece.ahead = ahead + (fetches ? (chunk * k + n * count) * w.bits / 8 : 0);
          if (two) {
            core.template add<2>(piece);
          } else {
            core.template add<1>(piece);
          }
        }
        panel += two ? 2 : 1;
      }
    }
    for (int64_t band = band0; band < band1; ++band) {
      int32_t* here = sums.data() + (band - band0) * p.digits * kSquare;
      if (p.digits == 1 && !p.zero && !w.zeros) {
        finish_exact<V, true>(p, w, result, ends, n0, outputs, band, next, here);
      } else {
        finish_exact<V, false>(p, w, result, ends, n0, outputs, band, next, here);
      }
    }
  }
}

}  // namespace
}  // namespace jcompress
