// As fuzz_products.cc, for attention: any sizes and steps, biases, masks, scores that
// are infinite or no numbers, compared with plain loops in double.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

#include "attention.h"
#include "exact.h"

namespace jcompress {
namespace {

constexpr float kInfinite = std::numeric_limits<float>::infinity();

const AttentionKernels* attention_for(Instructions set) {
  switch (set) {
#if defined(__x86_64__)
    case Instructions::kAvx2:
      return avx2_attention();
    case Instructions::kAvx512Vnni:
      return avx512_vnni_attention();
#endif
    case Instructions::kGeneric:
      return generic_attention();
    default:
      return nullptr;
  }
}

// A matrix laid out one way or the other, or one of whose axes repeats.
struct Matrix {
  Matrix(Draw& draw, int64_t rows, int64_t columns, bool repeats)
      : by_row(columns), by_column(1), data(layout(draw, rows, columns, repeats)) {}

  int64_t layout(Draw& draw, int64_t rows, int64_t columns, bool repeats) {
    const int64_t kind = draw.integer(0, repeats ? 5 : 3);
    if (kind == 3) {
      by_row = 1;
      by_column = rows;
    } else if (kind == 2) {
      by_row = columns + draw.integer(1, 9);
    } else if (kind == 4) {
      by_row = 0;
    } else if (kind == 5) {
      by_column = 0;
      by_row = 1;
    }
    return (rows - 1) * by_row + (columns - 1) * by_column + 1;
  }
  float at(int64_t r, int64_t c) const { return data.data()[r * by_row + c * by_column]; }

  int64_t by_row, by_column;
  Exact<float> data;
};

struct Case {
  explicit Case(Draw& draw, int64_t most_rows)
      : rows(draw.one_of<int64_t>({1, 2, 3, draw.integer(1, most_rows), most_rows})),
        keys(draw.one_of<int64_t>({1, draw.integer(1, 20), draw.integer(1, 700)})),
        features(draw.one_of<int64_t>({draw.integer(1, 40), 16, 32, 64})),
        values(draw.one_of<int64_t>({draw.integer(1, 70), 16, 32, 64})),
        q(draw, rows, features, false),
        k(draw, keys, features, false),
        v(draw, keys, values, false),
        bias(draw, rows, keys, true),
        out(draw, rows, values, false),
        mask(draw, rows, keys, true) {
    for (Matrix* each : {&q, &k, &v, &bias}) {
      for (int64_t i = 0; i < each->data.size(); ++i) {
        each->data[i] = draw.uniform(-1, 1);
      }
    }
    has_bias = draw.coin();
    const int64_t odd = draw.integer(0, 7);
    for (int64_t i = 0; odd < 3 && i < bias.data.size(); ++i) {
      if (draw.integer(0, 3) == 0) {
        bias.data[i] = odd == 0 ? -kInfinite : odd == 1 ? -1e30f : 60.0f;
      }
    }
    if (odd == 3) q.data[draw.integer(0, q.data.size() - 1)] = std::nanf("");
    if (odd == 4) bias.data[draw.integer(0, bias.data.size() - 1)] = kInfinite;
    has_mask = draw.coin();
    fill = draw.one_of({-kInfinite, -1e9f, -std::numeric_limits<float>::max(), -3.0f});
    scale = draw.one_of({1.0f, 0.125f});
    // At random, up to some key, or whatever lies behind another.
    const int64_t kind = draw.integer(0, 3), from = draw.integer(0, keys);
    const int64_t to = draw.integer(from, keys);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t s = 0; s < keys; ++s) {
        const bool left = kind == 0   ? draw.coin()
                          : kind == 1 ? from <= s && s < to
                          : kind == 2 ? s <= r + from
                                      : true;
        mask.data[r * mask.by_row + s * mask.by_column] = left;
      }
    }
  }

  void compare(const AttentionKernels& kernels, const char* set, uint64_t seed) {
    AttentionShape shape{features,       keys,         values,         q.by_column,
                         k.by_row,       k.by_column,  v.by_row,       v.by_column,
                         bias.by_column, mask.by_column, out.by_column, scale,
                         fill};
    Exact<uint8_t> bytes(mask.data.size());
    for (int64_t i = 0; i < mask.data.size(); ++i) bytes[i] = mask.data[i] != 0;
    AttentionRows all{};
    all.count = rows;
    all.q = q.data.data();
    all.k = k.data.data();
    all.v = v.data.data();
    all.bias = has_bias ? bias.data.data() : nullptr;
    all.mask = has_mask ? bytes.data() : nullptr;
    all.out = out.data.data();
    for (int64_t i = 0; i < AttentionRows::kMostRows; ++i) {
      const int64_t r = std::min(i, rows - 1);
      all.q_rows[i] = r * q.by_row;
      all.bias_rows[i] = r * bias.by_row;
      all.mask_rows[i] = r * mask.by_row;
      all.out_rows[i] = r * out.by_row;
    }
    kernels.attend(shape, all);
    for (int64_t r = 0; r < rows; ++r) compare_row(r, set, seed);
  }

  void compare_row(int64_t r, const char* set, uint64_t seed) const {
    std::vector<double> weights(keys);
    double top = -kInfinite, total = 0;
    for (int64_t s = 0; s < keys; ++s) {
      double score = 0;
      for (int64_t d = 0; d < features; ++d) score += double{q.at(r, d)} * k.at(s, d);
      score = score * scale + (has_bias ? bias.at(r, s) : 0.0f);
      weights[s] = has_mask && mask.at(r, s) == 0 ? fill : score;
      top = weights[s] > top || std::isnan(weights[s]) ? weights[s] : top;
    }
    for (double& each : weights) total += each = std::exp(each - top);
    for (int64_t e = 0; e < values; ++e) {
      double sum = 0;
      for (int64_t s = 0; s < keys; ++s) sum += weights[s] / total * v.at(s, e);
      const float got = out.at(r, e);
      const bool same = std::isnan(sum) ? std::isnan(got) : std::abs(got - sum) <= 4e-6;
      if (!same) {
        std::printf(
            "%s, seed %llu: out[%lld of %lld, %lld of %lld] for %lld keys is %.9g, "
            "not %.9g\n",
            set, static_cast<unsigned long long>(seed), static_cast<long long>(r),
            static_cast<long long>(rows), static_cast<long long>(e),
            static_cast<long long>(values), static_cast<long long>(keys), got, sum);
        std::exit(1);
      }
    }
  }

  int64_t rows, keys, features, values;
  Matrix q, k, v, bias, out, mask;
  bool has_bias, has_mask;
  float fill, scale;
};

}  // namespace
}  // namespace jcompress

int main(int count, char** arguments) {
  using namespace jcompress;
  const uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 0;
  const uint64_t cases = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1000;
  for (Instructions set :
       {Instructions::kGeneric, Instructions::kAvx2, Instructions::kAvx512Vnni}) {
    const char* name = instructions_name(set);
    const AttentionKernels* found = has_instructions(set) ? attention_for(set) : nullptr;
    if (!found || (count > 3 && std::strcmp(arguments[3], name))) continue;
    for (uint64_t i = seed; i < seed + cases; ++i) {
      Draw draw(i);
      Case(draw, found->most_rows).compare(*found, name, i);
    }
    std::printf("%s: %llu cases of attention\n", name,
                static_cast<unsigned long long>(cases));
  }
  return 0;
}
