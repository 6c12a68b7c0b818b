// Products of integers of many rows by AMX: sixteen outputs of a block of the weight
// times sixteen rows of a panel in one instruction. For few rows, and for floats, the
// kernels are those of AVX-512. Without AMX its arithmetic is tested on emulated tile
// registers. From how many rows on it is used is a guess.
#include "product.h"

// Set with the flags -mamx-tile -mamx-int8. Only on Linux can a process ask for the
// registers; elsewhere, and with a compiler that does not know them, there is no set.
#if defined(__AMX_INT8__) && defined(__linux__)

#include "amx_tiles.h"
#include "panel_exact.h"
#include "panel_integers.h"
#include "panel_kernels.h"
#include "vector_avx512.h"

namespace jcompress {
namespace {

constexpr int kTileRows = 16;
constexpr int64_t kFewestRows = 12;  // which fill three quarters of the lanes

class TileProducts {
 public:
  static constexpr int kOutputs = 2 * kTileRows, kExactOutputs = kOutputs;

  TileProducts(const Panels& p, const Weight& w) {
    // The most inputs that a register holds and that divide a group.
    if (p.groups > 1) {
      while (w.group_size() % inputs_) inputs_ -= 4;
    }
    TileConfig config;
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = kTileRows;
      config.row_bytes[tile] = 64;
    }
    config.row_bytes[kLeft] = config.row_bytes[kLeft + 1] =
        static_cast<uint16_t>(inputs_);
    config.rows[kRight] = config.rows[kRight + 1] = static_cast<uint8_t>(inputs_ / 4);
    configure_tiles(config);
  }
  TileProducts(const TileProducts&) = delete;
  ~TileProducts() { release_tiles(); }

  // Adds to sums, or begins them.
  template <int kPanels>
  void add(const ExactPiece& piece) {
    constexpr int kSquare = kTileRows * kTileRows;
    const Places places{kTileRows, piece.next, kSquare};
    if (piece.fresh) {
      zero_sums<kPanels>();
    } else {
      load_sums<kPanels>(piece.sums, places);
    }
    multiply<kPanels>(piece.w, piece.x, piece.panel, piece.quads);
    store_sums<kPanels>(piece.sums, places);
  }

  // totals[output * stride + lane] += the sum of products of each group, times its scale.
  template <int kPanels>
  void add(const uint8_t* w, const int8_t* x, int64_t panel, int64_t quads,
           const BlockGroups& g, float* totals, int64_t stride) {
    const int64_t size = quads / g.groups;
    alignas(64) int32_t sums[kOutputs][kPanels][kTileRows];
    for (int64_t i = 0; i < g.groups; ++i) {
      zero_sums<kPanels>();
      multiply<kPanels>(w + 4 * size * i, x + size * Avx512::kBytes * i, panel, size);
      constexpr int kRow = kPanels * kTileRows;
      store_sums<kPanels>(&sums[0][0][0], {kRow, kTileRows * kRow, kTileRows});
      const float* scales = g.scales + i * kChunk;
      const int32_t* shifts = g.shifts + i * kChunk;
      for (int v = 0; v < kPanels; ++v) {
        const Avx512::I left =
            Avx512::load(g.sums + v * g.panel_sums + i * Avx512::kLanes);
        for (int n = 0; n < kOutputs; ++n) {
          const Avx512::I shift =
              Avx512::multiply(left, Avx512::broadcast_word(-shifts[n]));
          const Avx512::I sum = Avx512::subtract(Avx512::load(sums[n][v]), shift);
          float* total = totals + n * stride + v * Avx512::kLanes;
          Avx512::store_float(
              total, Avx512::add_scaled(Avx512::load_float(total), sum,
                                        Avx512::broadcast(scales[n])));
        }
      }
    }
  }

 private:
  // Registers: sums of two sets of outputs with two panels, those outputs, the panels.
  static constexpr int kLeft = 4, kRight = 6;

  template <int kPanels>
  static void zero_sums() {
    zero_tile<0>();
    zero_tile<2>();
    if constexpr (kPanels == 2) {
      zero_tile<1>();
      zero_tile<3>();
    }
  }

  // Where sums are: from one output to the next, to that sixteen on, to the next panel.
  struct Places {
    int64_t output, sixteen, panel;
  };

  template <int kPanels>
  static void load_sums(const int32_t* sums, const Places& at) {
    load_tile<0>(sums, 4 * at.output);
    load_tile<2>(sums + at.sixteen, 4 * at.output);
    if constexpr (kPanels == 2) {
      load_tile<1>(sums + at.panel, 4 * at.output);
      load_tile<3>(sums + at.sixteen + at.panel, 4 * at.output);
    }
  }

  template <int kPanels>
  static void store_sums(int32_t* sums, const Places& at) {
    store_tile<0>(sums, 4 * at.output);
    store_tile<2>(sums + at.sixteen, 4 * at.output);
    if constexpr (kPanels == 2) {
      store_tile<1>(sums + at.panel, 4 * at.output);
      store_tile<3>(sums + at.sixteen + at.panel, 4 * at.output);
    }
  }

  template <int kPanels>
  void multiply(const uint8_t* w, const int8_t* x, int64_t panel, int64_t quads) {
    for (int64_t k = 0; k < quads; k += inputs_ / 4) {
      load_tile<kRight>(x + k * Avx512::kBytes, Avx512::kBytes);
      load_tile<kLeft>(w + 4 * k, kStride);
      dot_tiles<0, kLeft, kRight>();
      load_tile<kLeft + 1>(w + 4 * k + kTileRows * kStride, kStride);
      dot_tiles<2, kLeft + 1, kRight>();
      if constexpr (kPanels == 2) {
        load_tile<kRight + 1>(x + panel + k * Avx512::kBytes, Avx512::kBytes);
        dot_tiles<1, kLeft, kRight + 1>();
        dot_tiles<3, kLeft + 1, kRight + 1>();
      }
    }
  }

  int inputs_ = 64;
};

void multiply_by_tiles(const Panels& p, const Weight& w, const Result& result,
                       int64_t first, int64_t last, int64_t band0, int64_t band1) {
  if (p.digits > 0 && w.groups == 1) {
    multiply_exact<Avx512, TileProducts>(p, w, result, first, last, band0, band1);
  } else if (p.digits > 0) {
    multiply_grouped<Avx512, TileProducts>(p, w, result, first, last, band0, band1);
  } else {
    avx512_vbmi_products()->many.multiply(p, w, result, first, last, band0, band1);
  }
}

Products with_tiles() {
  Products products = *avx512_vbmi_products();
  products.many.integers = kFewestRows;
  products.many.multiply = &multiply_by_tiles;
  return products;
}

}  // namespace

const Products* amx_int8_products() {
  static const Products kProducts = with_tiles();
  return &kProducts;
}

}  // namespace jcompress

#else

namespace jcompress {

const Products* amx_int8_products() { return nullptr; }

}  // namespace jcompress

#endif
