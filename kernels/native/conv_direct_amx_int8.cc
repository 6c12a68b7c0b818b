// Direct convolutions by AMX: sixteen positions meet sixteen outputs in one instruction. The
// images are signed here; what they would add with 128 more, which the ends count with, is
// added to the sums. All else is that of AVX-512.
#include "conv_direct.h"

// As for products: see products_amx_int8.cc.
#if defined(__AMX_INT8__) && defined(__linux__)

#include <immintrin.h>

#include "amx_tiles.h"
#include "conv_ends_avx512.h"

namespace jcompress {
namespace {

constexpr int kTileRows = 16;
constexpr int kStepQuads = 16;  // inputs of one instruction, four at a time
constexpr int kData = 4, kWeights = 5;  // registers behind those of the sums

using Rows = const int8_t* const*;

// The bytes from one row to the next if that is the same for all sixteen, else 0.
int64_t stride_of(Rows rows, int here) {
  const int64_t stride = here > 1 ? rows[1] - rows[0] : 0;
  for (int r = 2; r < here; ++r) {
    if (rows[r] - rows[r - 1] != stride) return 0;
  }
  return here == kTileRows ? stride : 0;
}

// Loads some inputs of the rows, with zeros behind them: what the weights have there is of
// other inputs, or not known.
[[gnu::always_inline]] inline void load_part(Rows rows, int here, int64_t offset,
                                             int64_t bytes) {
  alignas(64) int8_t part[kTileRows][64];
  const __mmask64 some = bytes >= 64 ? ~__mmask64{0} : (__mmask64{1} << bytes) - 1;
  for (int r = 0; r < kTileRows; ++r) {
    const __m512i row = r < here ? _mm512_maskz_loadu_epi8(some, rows[r] + offset)
                                 : _mm512_setzero_si512();
    _mm512_store_si512(part[r], row);
  }
  load_tile<kData>(part, 64);
}

// Sums [row][64] of up to sixteen positions with the outputs of a block.
template <int kVectors>
void add_tiles(const ConvImages& g, Rows rows, int here, const int8_t* w, int32_t* sums) {
  each<kVectors>([&](auto v) JCOMPRESS_INLINE { zero_tile<v>(); });
  const int64_t quads = g.run_quads(), stride = stride_of(rows, here);
  for (int64_t run = 0; run < g.runs; ++run) {
    const int64_t offset = g.offsets[run];
    for (int64_t q = 0; q < quads; q += kStepQuads) {
      const int64_t bytes = g.run_inputs - 4 * q;
      if (stride != 0 && bytes >= 64) {
        load_tile<kData>(rows[0] + offset + 4 * q, stride);
      } else {
        load_part(rows, here, offset + 4 * q, bytes);
      }
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        load_tile<kWeights + v % 3>(w + v * 64, kVectors * 64);
        dot_signed_tiles<v, kData, kWeights + v % 3>();
      });
      w += std::min<int64_t>(kStepQuads, quads - q) * kVectors * 64;
    }
  }
  each<kVectors>([&](auto v) JCOMPRESS_INLINE {
    store_tile<v>(sums + v * kLanes, 4 * ConvBlock::kOutputs);
  });
}

template <int kVectors>
void multiply_block(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                    const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  constexpr int kOutputs = ConvBlock::kOutputs;
  alignas(64) int32_t sums[kTileRows * kOutputs];
  __m512i more[4];
  each<kVectors>([&](auto v) JCOMPRESS_INLINE {
    more[v] = _mm512_slli_epi32(_mm512_loadu_si512(b.sums + v * kLanes), 7);
    if (end.linear) {
      const __m512i start = _mm512_loadu_si512(b.linear->start + v * kLanes);
      more[v] = _mm512_add_epi32(more[v], start);
    }
  });
  const LinearEnd last(end);
  const Ends ends{b, w, end, g.scale, g.zero, g.positions};
  const Finish finish = finish_of(end.function);
  through_rows<kTileRows, int8_t>(g, b, row0, row1, [&](int64_t m, Rows rows, int here) {
    add_tiles<kVectors>(g, rows, here, b.packed, sums);
    const int64_t at = place_of(g, b, w, image0, m);
    for (int r = 0; r < here; ++r) {
      int32_t* const row = sums + r * kOutputs;
      __m512i all[4];
      each<kVectors>([&](auto v) JCOMPRESS_INLINE {
        all[v] = _mm512_add_epi32(_mm512_load_si512(row + v * kLanes), more[v]);
        if (!end.linear) _mm512_store_si512(row + v * kLanes, all[v]);
      });
      if (end.linear) {
        const StoreLinear store{last, *b.linear, b.count, w.outputs, at, end.integers};
        store(Number<kVectors>{}, r, all);
      }
    }
    if (!end.linear) finish(ends, sums, image0, m, here);
  });
}

void multiply_by_tiles(const ConvImages& g, const ConvBlock& b, const ConvWeight& w,
                       const ConvEnd& end, int64_t image0, int64_t row0, int64_t row1) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = kTileRows;
    config.row_bytes[tile] = 64;
  }
  configure_tiles(config);
  constexpr decltype(&multiply_block<1>) kBlocks[] = {multiply_block<1>, multiply_block<2>,
                                                      multiply_block<3>, multiply_block<4>};
  kBlocks[b.vectors() - 1](g, b, w, end, image0, row0, row1);
  release_tiles();
}

ConvKernels with_tiles() {
  ConvKernels kernels = *avx512_vnni_conv();
  kernels.multiply = &multiply_by_tiles;
  kernels.together = kTileRows;
  return kernels;
}

}  // namespace

const ConvKernels* amx_int8_conv() {
  static const ConvKernels kKernels = with_tiles();
  return &kKernels;
}

}  // namespace jcompress

#else

namespace jcompress {

const ConvKernels* amx_int8_conv() { return nullptr; }

}  // namespace jcompress

#endif
