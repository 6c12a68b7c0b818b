// Attention of many rows: their scores lie in the lanes of vectors, so that keys are
// read where they are, the softmax needs no sums across lanes, and the weights of a key
// are read one by one where they meet its values. Keys are taken in blocks with a
// running maximum and sum (Dao et al., arXiv 2205.14135, algorithm 1).
#pragma once

#include "attention_parts.h"
#include "attention_transpose.h"

namespace jcompress {
namespace {

template <class V, int kVectors>
class ManyRows {
  using F = typename V::F;
  static constexpr int64_t kRows = kVectors * V::kLanes;
  static constexpr int64_t kKeys = 4096 / kRows;  // a block of scores: 16 KB
  static constexpr int kTile = kSums / kVectors;  // keys whose scores are summed up

 public:
  static_assert(kRows <= AttentionRows::kMostRows);

  static void attend(const AttentionShape& shape, const AttentionRows& rows) {
    ManyRows(shape, rows).run();
  }

 private:
  ManyRows(const AttentionShape& shape, const AttentionRows& rows)
      : shape_(shape),
        rows_(rows),
        wide_((shape.values + V::kLanes - 1) / V::kLanes * V::kLanes),
        copies_k_(shape.k_feature != 1 && shape.features > 1),
        copies_v_((shape.v_value != 1 && shape.values > 1) || wide_ != shape.values),
        block_(std::min(kKeys, shape.keys)),
        memory_(kRows * (shape.features + block_ + wide_) +
                (copies_v_ ? block_ * wide_ : 0) +
                (copies_k_ ? block_ * shape.features : 0)),
        q_(memory_.data()),
        scores_(q_ + shape.features * kRows),
        sums_(scores_ + block_ * kRows),
        v_(sums_ + kRows * wide_),
        k_(v_ + (copies_v_ ? block_ * wide_ : 0)) {}

  void run() {
    turned<V, kVectors>(rows_.q, rows_.q_rows, shape_.q_feature, shape_.features,
                        [&](int64_t d, int j, F x) JCOMPRESS_INLINE {
                          V::store(q_ + d * kRows + j * V::kLanes,
                                   x * V::broadcast(shape_.scale));
                        });
    // Keys that a mask excludes weigh nothing, unless all scores of a row are low.
    if (!add_blocks(true) && !skipped_weigh_nothing()) add_blocks(false);
    write();
  }

  // Go through all keys; whether none that are left out were skipped.
  bool add_blocks(bool skips) {
    bool complete = true;
    started_ = false;
    for (int j = 0; j < kVectors; ++j) {
      top_[j] = V::broadcast(-__builtin_inff());
      total_[j] = V::zero();
    }
    for (int64_t first = 0; first < shape_.keys; first += kKeys) {
      const int64_t last = std::min(shape_.keys, first + kKeys);
      Left left = left_of(shape_, rows_, first, last);
      if (!skips) {
        left = {first, last, left.all && left.last - left.first == last - first};
      }
      complete = complete && left.last - left.first == last - first;
      if (left.last > left.first) add_block(left);
    }
    return complete;
  }

  bool skipped_weigh_nothing() const {
    if (shape_.fill == -__builtin_inff()) return true;
    constexpr float kFar = 104;  // e^-104 is 0
    float top[kRows];
    for (int j = 0; j < kVectors; ++j) V::store(top + j * V::kLanes, top_[j]);
    bool far = true;
    for (float each : top) far = far && each - shape_.fill > kFar;
    return far;
  }

  void add_block(const Left& left) {
    const int64_t count = left.last - left.first;
    score(left.first, count);
    add_bias(left.first, count);
    if (!left.all) exclude(left.first, count);
    weigh(count);
    const float* v = rows_.v + left.first * shape_.v_key;
    int64_t v_key = shape_.v_key;
    if (copies_v_) {
      for (int64_t s = 0; s < count; ++s) {
        float* to = v_ + s * wide_;
        for (int64_t e = 0; e < shape_.values; ++e) {
          to[e] = v[s * v_key + e * shape_.v_value];
        }
        std::fill(to + shape_.values, to + wide_, 0.0f);
      }
      v = v_;
      v_key = wide_;
    }
    mix<V, kSums / 2>(scores_, ByKey{kRows}, rows_.count, count, v, v_key,
                      wide_ / V::kLanes, started_ ? factors_ : nullptr, sums_,
                      wide_);
    started_ = true;
  }

  // The scores of `count` keys in [key, row].
  void score(int64_t first, int64_t count) {
    const float* k = rows_.k + first * shape_.k_key;
    int64_t step = shape_.k_key;
    if (copies_k_) {
      for (int64_t s = 0; s < count; ++s) {
        for (int64_t d = 0; d < shape_.features; ++d) {
          k_[s * shape_.features + d] = k[s * step + d * shape_.k_feature];
        }
      }
      k = k_;
      step = shape_.features;
    }
    score_tiles<kTile>(k, step, count, scores_);
  }

  template <int kCount>
  void score_tiles(const float* k, int64_t step, int64_t count, float* out) {
    int64_t s = 0;
    for (; s + kCount <= count; s += kCount) {
      score_tile<kCount>(k + s * step, step, out + s * kRows);
    }
    if constexpr (kCount > 1) {
      if (s < count) {
        score_tiles<kCount / 2>(k + s * step, step, count - s, out + s * kRows);
      }
    }
  }

  template <int kCount>
  void score_tile(const float* k, int64_t step, float* out) const {
    F sum[kCount][kVectors];
    each<kCount>([&](auto s) JCOMPRESS_INLINE {
      each<kVectors>([&](auto j) JCOMPRESS_INLINE { sum[s][j] = V::zero(); });
    });
    const float* q = q_;
    for (int64_t d = 0; d < shape_.features; ++d) {
      F x[kVectors];
      each<kVectors>([&](auto j) JCOMPRESS_INLINE {
        x[j] = V::load(q + d * kRows + j * V::kLanes);
      });
      each<kCount>([&](auto s) JCOMPRESS_INLINE {
        const F y = V::broadcast(k[s * step + d]);
        each<kVectors>([&](auto j) JCOMPRESS_INLINE {
          sum[s][j] = V::fma(y, x[j], sum[s][j]);
        });
      });
    }
    each<kCount>([&](auto s) JCOMPRESS_INLINE {
      each<kVectors>([&](auto j) JCOMPRESS_INLINE {
        V::store(out + s * kRows + j * V::kLanes, sum[s][j]);
      });
    });
  }

  // `f(score, x)` in the place of each score, x an element of an array for it.
  template <class T, class Change>
  void change(const T* from, const int64_t* offsets, int64_t step, int64_t count,
              Change&& f) {
    float* scores = scores_;
    if (equal_rows(offsets, rows_.count)) {
      for (int64_t s = 0; s < count; ++s) {
        const F x = V::broadcast(from[offsets[0] + s * step]);
        for (int j = 0; j < kVectors; ++j) {
          float* at = scores + s * kRows + j * V::kLanes;
          V::store(at, f(V::load(at), x));
        }
      }
      return;
    }
    turned<V, kVectors>(from, offsets, step, count,
                        [&](int64_t s, int j, F x) JCOMPRESS_INLINE {
                          float* at = scores + s * kRows + j * V::kLanes;
                          V::store(at, f(V::load(at), x));
                        });
  }

  void add_bias(int64_t first, int64_t count) {
    if (!rows_.bias) return;
    change(rows_.bias + first * shape_.bias_key, rows_.bias_rows, shape_.bias_key,
           count, [](F score, F x) JCOMPRESS_INLINE { return score + x; });
  }

  void exclude(int64_t first, int64_t count) {
    const auto* mask = reinterpret_cast<const int8_t*>(rows_.mask);
    const F fill = V::broadcast(shape_.fill);
    change(mask + first * shape_.mask_key, rows_.mask_rows, shape_.mask_key, count,
           [fill](F score, F x)
               JCOMPRESS_INLINE { return x == V::zero() ? fill : score; });
  }

  // Scores become weights relative to the largest score so far.
  void weigh(int64_t count) {
    const F lowest = V::broadcast(-__builtin_inff());
    for (int j = 0; j < kVectors; ++j) {
      float* scores = scores_ + j * V::kLanes;
      F high[4] = {top_[j], lowest, lowest, lowest};
      int64_t s = 0;
      for (; s + 4 <= count; s += 4) {
        each<4>([&](auto i) JCOMPRESS_INLINE {
          high[i] = Math<V>::at_least(V::load(scores + (s + i) * kRows), high[i]);
        });
      }
      for (; s < count; ++s) {
        high[0] = Math<V>::at_least(V::load(scores + s * kRows), high[0]);
      }
      const F top = Math<V>::at_least(Math<V>::at_least(high[0], high[1]),
                                      Math<V>::at_least(high[2], high[3]));
      // Of a row that has none but -inf so far all weights are 0.
      const F base = top == lowest ? V::zero() : top;
      const F factor = exp_down<V>(top_[j] - base);
      // Several sums, as equal weights would be rounded alike.
      F total[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
      const auto add = [&](F& sum, float* at) JCOMPRESS_INLINE {
        const F weight = exp_down<V>(V::load(at) - base);
        sum = sum + weight;
        V::store(at, weight);
      };
      for (s = 0; s + 4 <= count; s += 4) {
        each<4>([&](auto i) JCOMPRESS_INLINE {
          add(total[i], scores + (s + i) * kRows);
        });
      }
      for (; s < count; ++s) add(total[0], scores + s * kRows);
      total_[j] = V::fma(total_[j], factor, (total[0] + total[1]) + (total[2] + total[3]));
      top_[j] = top;
      V::store(factors_ + j * V::kLanes, factor);
    }
  }

  void write() {
    float totals[kRows];
    for (int j = 0; j < kVectors; ++j) V::store(totals + j * V::kLanes, total_[j]);
    for (int64_t r = 0; r < rows_.count; ++r) {
      float* sums = sums_ + r * wide_;
      float* out = rows_.out + rows_.out_rows[r];
      // Of no keys at all, or none that score above -inf; the second gives NaN.
      if (!started_) {
        const float none = shape_.keys ? __builtin_nanf("") : 0.0f;
        std::fill(sums, sums + wide_, none);
        totals[r] = 1;
      }
      const F inverse = V::broadcast(1 / totals[r]);
      int64_t e = 0;
      if (shape_.out_value == 1) {
        for (; e + V::kLanes <= shape_.values; e += V::kLanes) {
          V::store(out + e, V::load(sums + e) * inverse);
        }
      }
      for (; e < shape_.values; ++e) {
        out[e * shape_.out_value] = sums[e] * (1 / totals[r]);
      }
    }
  }

  const AttentionShape& shape_;
  const AttentionRows& rows_;
  const int64_t wide_;  // values, in whole vectors
  const bool copies_k_, copies_v_;
  const int64_t block_;   // keys that are taken at once
  Buffer<float> memory_;  // of all that follow
  float* const q_;        // [feature, row], scaled
  float* const scores_;   // [key, row] of a block
  float* const sums_;     // [row, wide]
  float* const v_;        // [key, wide] of a block, if they do not lie in rows
  float* const k_;        // [key, feature] of a block, if they do not lie in rows
  F top_[kVectors], total_[kVectors];
  float factors_[kRows];
  bool started_ = false;
};

}  // namespace
}  // namespace jcompress
