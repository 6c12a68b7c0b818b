// Vectors in plain C++, for processors without a set of their own.
#pragma once

#include <cstdint>
#include <cstring>

namespace jcompress {
namespace {

struct Generic {
  struct I {
    int32_t lane[4];
  };
  struct F {
    float lane[4];
  };
  static constexpr int kBytes = 16;
  static constexpr int kLanes = 4;

  static constexpr int outputs(int rows, bool) { return rows <= 2 ? 2 : 1; }

  static I zero() { return {}; }
  static F zero_float() { return {}; }
  static F broadcast(float x) { return {{x, x, x, x}}; }
  static I load(const void* p) {
    I v;
    std::memcpy(&v, p, kBytes);
    return v;
  }
  static I first(int32_t x) { return {{x, 0, 0, 0}}; }
  static F add_scaled(F total, I sums, F scale) {
    for (int i = 0; i < kLanes; ++i) {
      total.lane[i] += static_cast<float>(sums.lane[i]) * scale.lane[i];
    }
    return total;
  }

  // Of products of many rows.
  static constexpr bool kPartsTogether = false;
  static constexpr bool kDealsSteps = false;
  static constexpr bool kIntegerPanels = false;
  static constexpr bool kStrips = false;
  static constexpr int kFloatOutputs = 2;
  static constexpr int64_t kFloatRows = 8, kGroupedFloatRows = 8;

  static F load_float(const float* p) {
    F v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store_float(float* p, F x) { std::memcpy(p, &x, sizeof(x)); }
  static F fma(F a, F b, F c) {
    for (int i = 0; i < kLanes; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
  }
  static void transpose(float (&square)[4][4]) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) {
        const float x = square[i][j];
        square[i][j] = square[j][i];
        square[j][i] = x;
      }
    }
  }

  static I lane_groups(int groups) {
    return {{0, groups / 4, 2 * groups / 4, 3 * groups / 4}};
  }
  static F scale_lanes(const float* scales, int count, I index) {
    F v = {};
    for (int i = 0; i < kLanes; ++i) {
      if (index.lane[i] < count) v.lane[i] = scales[index.lane[i]];
    }
    return v;
  }
  static I zero_lanes(const int8_t* zeros, int count, I index, int offset) {
    I v = {};
    for (int i = 0; i < kLanes; ++i) {
      if (index.lane[i] < count) v.lane[i] = zeros[index.lane[i]] + offset;
    }
    return v;
  }
  static I minus_product(I a, I b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] = -a.lane[i] * b.lane[i];
    return a;
  }

  template <int kCount>
  static void add_sums(const I (&v)[kCount], int32_t* out) {
    for (int n = 0; n < kCount; ++n) {
      for (int i = 0; i < kLanes; ++i) out[n] += v[n].lane[i];
    }
  }
  template <int kCount>
  static void add_totals(const F (&v)[kCount], float* out) {
    for (int n = 0; n < kCount; ++n) {
      for (int i = 0; i < kLanes; ++i) out[n] += v[n].lane[i];
    }
  }

  template <int kBits>
  struct Format {
    static constexpr int kParts = kBits == 4 ? 2 : kBits == 2 ? 4 : 1;
    static constexpr int kPartInputs = 16;
    static constexpr int kOffset = 0;
    static constexpr int kStepBytes = kParts * kPartInputs * kBits / 8;

    static I load(const uint8_t* p) {
      I v = {};
      std::memcpy(&v, p, kStepBytes);
      return v;
    }
    template <int kPart>
    static I decode(I raw) {
      uint8_t in[kBytes];
      int8_t out[kBytes];
      std::memcpy(in, &raw, kBytes);
      if constexpr (kBits == 8) {
        return raw;
      } else if constexpr (kBits == 3) {
        for (int i = 0; i < 2; ++i) {
          const uint32_t word = in[3 * i] | in[3 * i + 1] << 8 | in[3 * i + 2] << 16;
          for (int j = 0; j < 8; ++j) out[8 * i + j] = (((word >> (3 * j)) & 7) ^ 4) - 4;
        }
      } else {
        constexpr int kMask = (1 << kBits) - 1;
        constexpr int kSign = 1 << (kBits - 1);
        for (int i = 0; i < kBytes; ++i) {
          out[i] = (((in[i] >> (kBits * kPart)) & kMask) ^ kSign) - kSign;
        }
      }
      return Generic::load(out);
    }
    static I dot(I sums, I weight, I x) {
      int8_t a[kBytes], b[kBytes];
      std::memcpy(a, &weight, kBytes);
      std::memcpy(b, &x, kBytes);
      for (int i = 0; i < kLanes; ++i) {
        int32_t sum = 0;
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += a[j] * b[j];
        sums.lane[i] += sum;
      }
      return sums;
    }
  };
};

}  // namespace
}  // namespace jcompress
