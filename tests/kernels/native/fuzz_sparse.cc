// As fuzz_products.cc, for weights of which little is stored: masks and indices of any
// bits, blocks of any size.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "exact.h"
#include "sparse.h"

namespace jcompress {
namespace {

const SparseProducts* products_for(Instructions set) {
  switch (set) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
      return avx2_sparse_products();
    case Instructions::kAvx512Vnni:
      return avx512_vnni_sparse_products();
    case Instructions::kAvx512Vbmi:
      return avx512_vbmi_sparse_products();
#endif
    case Instructions::kGeneric:
      return generic_sparse_products();
    default:
      return nullptr;
  }
}

// Memory for packed floats, which are aligned.
struct Packed {
  explicit Packed(int64_t count) {
    if (posix_memalign(&data, 64, count * sizeof(float))) std::abort();
  }
  ~Packed() { std::free(data); }
  float* floats() { return static_cast<float*>(data); }
  void* data;
};

struct Activation {
  Activation(Draw& draw, int64_t rows, int64_t inputs)
      : dtype(draw.one_of({Float::kF32, Float::kBF16, Float::kF16})),
        numbers(rows * inputs),
        bytes(rows * inputs * bytes_of(dtype)),
        all{bytes.data(), dtype, rows, inputs} {
    for (int64_t i = 0; i < rows * inputs; ++i) {
      store(draw.uniform(-1, 1), dtype, bytes.data(), i);
      widen(bytes.data(), dtype, i, 1, &numbers[i]);
    }
  }
  Float dtype;
  std::vector<float> numbers;
  Exact<char> bytes;
  Inputs all;
};

// Weights in a dtype, and as numbers.
struct Stored {
  Stored(Draw& draw, Float dtype, int64_t count)
      : numbers(count), bytes(count * bytes_of(dtype)) {
    for (int64_t i = 0; i < count; ++i) {
      if (dtype == Float::kS8) {
        bytes[i] = static_cast<char>(draw.integer(-128, 127));
        numbers[i] = static_cast<int8_t>(bytes[i]);
      } else {
        store(draw.uniform(-1, 1), dtype, bytes.data(), i);
        widen(bytes.data(), dtype, i, 1, &numbers[i]);
      }
    }
  }
  std::vector<float> numbers;
  Exact<char> bytes;
};

void compare(const char* what, uint64_t seed, const Activation& x,
             const std::vector<float>& dense, int64_t outputs, const float* scales,
             const Exact<char>& y) {
  const int64_t inputs = x.all.inputs;
  const double eps = x.dtype == Float::kBF16 ? 1.0 / 256
                     : x.dtype == Float::kF16 ? 1.0 / 1024
                                              : 0.0;
  for (int64_t m = 0; m < x.all.rows; ++m) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        const double product = double{x.numbers[m * inputs + k]} * dense[n * inputs + k];
        sum += product;
        size += std::abs(product);
      }
      const double scale = scales ? scales[n] : 1.0f;
      sum *= scale;
      float got;
      widen(y.data(), x.dtype, m * outputs + n, 1, &got);
      if (x.dtype == Float::kF16 && std::abs(sum) > 60000) continue;
      const double allowed = 4e-6 * size * scale + eps * std::abs(sum) + 1e-7;
      if (!(std::abs(got - sum) <= allowed)) {
        std::printf("%s, seed %llu: y[%lld, %lld] of %lld inputs is %.9g, not %.9g\n",
                    what, static_cast<unsigned long long>(seed),
                    static_cast<long long>(m), static_cast<long long>(n),
                    static_cast<long long>(inputs), got, sum);
        std::exit(1);
      }
    }
  }
}

void check_coded(const SparseProducts& products, const char* set, uint64_t seed) {
  Draw draw(seed);
  CodedWeight w{};
  w.coding = static_cast<Coding>(draw.integer(0, 4));
  w.inputs = draw.one_of<int64_t>({draw.integer(1, 40), draw.integer(1, 700),
                                   64 * draw.integer(1, 10) - draw.integer(0, 1)});
  const int64_t tables = draw.one_of<int64_t>({1, 1, 3});
  w.outputs_per_table = draw.integer(1, 20);
  w.outputs = tables * w.outputs_per_table;
  const int64_t rows = draw.one_of<int64_t>({1, 2, 3, 4, 5, 6, draw.integer(1, 30)});
  const Activation x(draw, rows, w.inputs);
  std::vector<float> dense(w.outputs * w.inputs, 0.0f);
  Exact<float> scales(w.outputs);
  for (int64_t i = 0; i < w.outputs; ++i) scales[i] = draw.uniform(0.01f, 0.1f);
  const bool masked = w.coding <= Coding::kMaskS8;
  const bool nibbles = w.coding == Coding::kNibbles;
  const int64_t m = draw.one_of<int64_t>({4, 8, draw.integer(2, 9)});
  const int64_t kept = draw.integer(1, m - 1);
  const Float dtype = w.coding == Coding::kMaskF32    ? Float::kF32
                      : w.coding == Coding::kMaskBF16 ? Float::kBF16
                                                      : Float::kS8;
  w.stored = masked ? (w.inputs + m - 1) / m * kept
                    : (nibbles ? (w.inputs + 1) / 2 : w.inputs);
  w.count = w.outputs * w.stored;
  const Stored values(draw, dtype, w.count);
  // Of some the outputs keep different numbers.
  const bool loose = masked && draw.coin();
  Exact<int32_t> starts(loose ? w.outputs + 1 : 0);
  if (loose) starts[0] = 0;
  Exact<uint8_t> mask(masked ? w.outputs * w.mask_bytes() : 0);
  Packed laid(tables * w.table_floats());
  bool fits = true;
  if (masked) {
    // Of some any bits, also behind the last input.
    const bool any = draw.integer(0, 7) == 0;
    std::memset(mask.data(), 0, mask.size());
    for (int64_t n = 0; n < w.outputs; ++n) {
      uint8_t* row = mask.data() + n * w.mask_bytes();
      if (any) {
        for (int64_t i = 0; i < w.mask_bytes(); ++i) {
          row[i] = draw.integer(0, 255) & draw.integer(0, 255);
        }
      }
      const int64_t first = loose ? starts[n] : n * w.stored;
      const int64_t room = loose ? w.count - first : w.stored;
      int64_t count = 0;
      for (int64_t k = 0; k < w.inputs; ++k) {
        const int64_t left = std::min(m, w.inputs - k / m * m) - k % m;
        const int64_t used = count - k / m * kept;
        if (!any && used < kept && draw.integer(1, left) <= kept - used) {
          row[k / 8] |= 1 << (k % 8);
        }
        if (row[k / 8] >> (k % 8) & 1) {
          if (count < room) {
            dense[n * w.inputs + k] = values.numbers[first + count];
          }
          ++count;
        }
      }
      int64_t bits = 0;
      for (int64_t i = 0; i < w.mask_bytes(); ++i) bits += __builtin_popcount(row[i]);
      fits = fits && bits <= room;
      if (loose) starts[n + 1] = first + std::min(count, room);
    }
    w.mask = mask.data();
    if (loose) w.starts = starts.data();
    w.scales = draw.coin() ? scales.data() : nullptr;
  } else {
    for (int64_t t = 0; t < tables; ++t) {
      Exact<float> table(w.table_floats());
      for (int64_t i = 0; i < table.size(); ++i) table[i] = draw.uniform(-1, 1);
      products.lay_table(table.data(), table.size(),
                         laid.floats() + t * w.table_floats());
      for (int64_t n = t * w.outputs_per_table; n < (t + 1) * w.outputs_per_table; ++n) {
        for (int64_t k = 0; k < w.inputs; ++k) {
          const auto byte = static_cast<uint8_t>(
              values.bytes.data()[n * w.stored + (nibbles ? k / 2 : k)]);
          const int index = nibbles ? byte >> (4 * (k % 2)) & 15 : byte;
          dense[n * w.inputs + k] = table[index];
        }
      }
    }
    w.tables = laid.floats();
  }
  w.values = values.bytes.data();
  Packed packed(products.coded_size(w, rows));
  for (int64_t i = 0; i < products.coded_pieces(w, rows); ++i) {
    products.pack_coded(w, x.all, packed.floats(), i);
  }
  Exact<char> y(rows * w.outputs * bytes_of(x.dtype));
  const int64_t chunk = draw.one_of<int64_t>({16, 32, 128});
  bool good = true;
  for (int64_t n = 0; n < w.outputs; n += chunk) {
    const int64_t last = std::min(w.outputs, n + chunk);
    good &= products.multiply_coded(w, packed.floats(), rows,
                                    {y.data(), x.dtype, nullptr}, n, last);
  }
  // What masks keep behind the last input may be refused or not.
  if (fits && !good) {
    std::printf("%s, coded, seed %llu: refused\n", set,
                static_cast<unsigned long long>(seed));
    std::exit(1);
  }
  if (fits) compare(set, seed, x, dense, w.outputs, w.scales, y);
}

void check_blocks(const SparseProducts& products, const char* set, uint64_t seed) {
  Draw draw(seed);
  BlockWeight w{};
  w.dtype = draw.one_of({Float::kF32, Float::kBF16, Float::kS8});
  w.high = draw.one_of<int64_t>({1, 4, 8, 16, 32, draw.integer(1, 20)});
  w.wide = draw.one_of<int64_t>({1, 4, 8, 16, 32, 64, draw.integer(1, 20)});
  w.block_rows = draw.integer(1, 8);
  const int64_t across = draw.integer(1, 12);
  w.inputs = across * w.wide;
  const int64_t rows = draw.one_of<int64_t>({1, 2, 3, 4, 8, draw.integer(1, 70)});
  const Activation x(draw, rows, w.inputs);
  std::vector<int32_t> columns;
  Exact<int32_t> starts(w.block_rows + 1);
  starts[0] = 0;
  for (int64_t r = 0; r < w.block_rows; ++r) {
    const int64_t most = draw.integer(0, 3);
    for (int64_t c = 0; c < across; ++c) {
      if (draw.integer(0, 3) < most) columns.push_back(static_cast<int32_t>(c));
    }
    starts[r + 1] = static_cast<int32_t>(columns.size());
  }
  const int64_t count = static_cast<int64_t>(columns.size()) + draw.integer(0, 2);
  Exact<int32_t> exact(count);
  for (int64_t i = 0; i < count; ++i) {
    exact[i] = i < static_cast<int64_t>(columns.size()) ? columns[i] : 0;
  }
  const Stored blocks(draw, w.dtype, count * w.high * w.wide);
  Exact<float> scales(w.outputs());
  for (int64_t i = 0; i < w.outputs(); ++i) scales[i] = draw.uniform(0.01f, 0.1f);
  w.blocks = blocks.bytes.data();
  w.columns = exact.data();
  w.starts = starts.data();
  w.scales = draw.coin() ? scales.data() : nullptr;
  std::vector<float> dense(w.outputs() * w.inputs, 0.0f);
  for (int64_t r = 0; r < w.block_rows; ++r) {
    for (int64_t b = starts[r]; b < starts[r + 1]; ++b) {
      for (int64_t i = 0; i < w.high * w.wide; ++i) {
        dense[(r * w.high + i / w.wide) * w.inputs + exact[b] * w.wide + i % w.wide] =
            blocks.numbers[b * w.high * w.wide + i];
      }
    }
  }
  Packed packed(products.blocks_size(w, rows));
  for (int64_t i = 0; i < products.blocks_pieces(w, rows); ++i) {
    products.pack_blocks(w, x.all, packed.floats(), i);
  }
  Exact<char> y(rows * w.outputs() * bytes_of(x.dtype));
  const int64_t chunk = draw.integer(1, w.block_rows);
  for (int64_t r = 0; r < w.block_rows; r += chunk) {
    products.multiply_blocks(w, packed.floats(), rows, {y.data(), x.dtype, nullptr}, r,
                             std::min(w.block_rows, r + chunk));
  }
  compare(set, seed, x, dense, w.outputs(), w.scales, y);
}

}  // namespace
}  // namespace jcompress

int main(int count, char** arguments) {
  using namespace jcompress;
  const uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
  const uint64_t products = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1000;
  for (Instructions set : {Instructions::kGeneric, Instructions::kAvx2,
                           Instructions::kAvx512Vnni, Instructions::kAvx512Vbmi}) {
    const char* name = instructions_name(set);
    const SparseProducts* found = has_instructions(set) ? products_for(set) : nullptr;
    if (!found || (count > 3 && std::strcmp(arguments[3], name))) continue;
    for (uint64_t i = seed; i < seed + products; ++i) {
      check_coded(*found, name, i);
      check_blocks(*found, name, i);
    }
    std::printf("%s: %llu products of either kind\n", name,
                static_cast<unsigned long long>(products));
  }
  return 0;
}
