// Attention of few rows, as when a model writes one word after the other: the time is
// that of reading keys and values once, and scores of neighbouring keys lie in the
// lanes of vectors.
#pragma once

#include "attention_parts.h"
#include "attention_transpose.h"

namespace jcompress {
namespace {

template <class V>
class FewRows {
  using F = typename V::F;
  static constexpr int kLanes = V::kLanes;

 public:
  static constexpr int64_t kMostRows = 2;

  // Whether keys and values lie in rows that fill vectors.
  static bool takes(const AttentionShape& shape, const AttentionRows& rows) {
    return rows.count <= kMostRows && shape.q_feature == 1 && shape.k_feature == 1 &&
           shape.v_value == 1 && shape.out_value == 1 && shape.keys > 0 &&
           shape.features >= kLanes && shape.values % kLanes == 0;
  }

  static void attend(const AttentionShape& shape, const AttentionRows& rows) {
    FewRows(shape, rows).run();
  }

 private:
  FewRows(const AttentionShape& shape, const AttentionRows& rows)
      : shape_(shape),
        rows_(rows),
        room_((shape.keys + kLanes - 1) / kLanes * kLanes),
        weights_(rows.count * room_) {}

  void run() {
    Left left = left_of(shape_, rows_, 0, shape_.keys);
    const bool skips = left.last - left.first < shape_.keys;
    // Keys that a mask excludes weigh nothing, unless all scores of a row are low.
    if (left.first == left.last || (!weigh(left) && skips)) {
      left = {0, shape_.keys, false};
      weigh(left);
    }
    const int64_t count = left.last - left.first;
    const float* v = rows_.v + left.first * shape_.v_key;
    float sums[kMostRows * kKept];
    const bool kept = shape_.values <= kKept;
    Buffer<float> more(kept ? 0 : rows_.count * shape_.values);
    float* out = kept ? sums : more.data();
    mix<V, 2>(weights_.data(), ByRow{room_}, rows_.count, count, v,
                      shape_.v_key, shape_.values / kLanes, nullptr, out,
                      shape_.values);
    for (int64_t r = 0; r < rows_.count; ++r) {
      std::memcpy(rows_.out + rows_.out_rows[r], out + r * shape_.values,
                  shape_.values * sizeof(float));
    }
  }

  // The weights of keys [first, last), the first of them at the beginning; false if
  // keys outside weigh something in a row.
  bool weigh(const Left& left) {
    const int64_t count = left.last - left.first;
    score(left);
    bool far = true;
    for (int64_t r = 0; r < rows_.count; ++r) {
      float* scores = weights_.data() + r * room_;
      add_bias(left, r, scores);
      if (!left.all) exclude(left, r, scores);
      for (int64_t s = count; s % kLanes; ++s) scores[s] = -__builtin_inff();
      F high = V::broadcast(-__builtin_inff());
      for (int64_t s = 0; s < count; s += kLanes) {
        high = Math<V>::at_least(V::load(scores + s), high);
      }
      float lanes[kLanes];
      V::store(lanes, high);
      float top = lanes[0];
      for (float x : lanes) top = x > top || x != x ? x : top;
      constexpr float kFar = 104;  // e^-104 is 0
      far = far && (shape_.fill == -__builtin_inff() || top - shape_.fill > kFar);
      const F base = V::broadcast(top);
      F total = V::zero();
      for (int64_t s = 0; s < count; s += kLanes) {
        const F weight = exp_down<V>(V::load(scores + s) - base);
        total = total + weight;
        V::store(scores + s, weight);
      }
      const F inverse = V::broadcast(1 / V::sum(total));
      for (int64_t s = 0; s < count; s += kLanes) {
        V::store(scores + s, V::load(scores + s) * inverse);
      }
    }
    return far;
  }

  void score(const Left& left) {
    const int64_t whole = shape_.features / kLanes * kLanes;
    for (int64_t first = left.first; first < left.last; first += kLanes) {
      const float* k[kLanes];
      each<kLanes>([&](auto i) JCOMPRESS_INLINE {
        k[i] = rows_.k + std::min<int64_t>(first + i, left.last - 1) * shape_.k_key;
      });
      for (int64_t r = 0; r < rows_.count; ++r) {
        const float* q = rows_.q + rows_.q_rows[r];
        F sum[kLanes];
        each<kLanes>([&](auto i) JCOMPRESS_INLINE { sum[i] = V::zero(); });
        for (int64_t d = 0; d < whole; d += kLanes) {
          const F x = V::load(q + d);
          each<kLanes>([&](auto i) JCOMPRESS_INLINE {
            sum[i] = V::fma(x, V::load(k[i] + d), sum[i]);
          });
        }
        transpose(sum);
        add_up<kLanes / 2>(sum);
        for (int64_t d = whole; d < shape_.features; ++d) {
          float x[kLanes];
          for (int i = 0; i < kLanes; ++i) x[i] = k[i][d];
          sum[0] = V::fma(V::broadcast(q[d]), V::load(x), sum[0]);
        }
        V::store(weights_.data() + r * room_ + first - left.first,
                 sum[0] * V::broadcast(shape_.scale));
      }
    }
  }

  // Leave the sum of all vectors in the first, in registers.
  template <int kHalf>
  static void add_up(F (&x)[kLanes]) {
    each<kHalf>([&](auto i) JCOMPRESS_INLINE { x[i] = x[i] + x[i + kHalf]; });
    if constexpr (kHalf > 1) add_up<kHalf / 2>(x);
  }

  void add_bias(const Left& left, int64_t r, float* scores) const {
    if (!rows_.bias) return;
    const int64_t count = left.last - left.first, step = shape_.bias_key;
    const float* bias = rows_.bias + rows_.bias_rows[r] + left.first * step;
    int64_t s = 0;
    if (step == 1) {
      for (; s + kLanes <= count; s += kLanes) {
        V::store(scores + s, V::load(scores + s) + V::load(bias + s));
      }
    }
    for (; s < count; ++s) scores[s] += bias[s * step];
  }

  void exclude(const Left& left, int64_t r, float* scores) const {
    const int64_t count = left.last - left.first, step = shape_.mask_key;
    const uint8_t* mask = rows_.mask + rows_.mask_rows[r] + left.first * step;
    for (int64_t s = 0; s < count; ++s) {
      if (!mask[s * step]) scores[s] = shape_.fill;
    }
  }

  static constexpr int64_t kKept = 128;  // values of a row that need no memory

  const AttentionShape& shape_;
  const AttentionRows& rows_;
  const int64_t room_;
  Buffer<float> weights_;  // [row, room]
};

}  // namespace
}  // namespace jcompress
