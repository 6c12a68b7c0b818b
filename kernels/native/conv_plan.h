// What is the same in every call of a convolution at one place of a program, and is made
// once: where the patches lie, and, if the program says that its weight is a constant, the
// weight as the kernels take it.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "buffer.h"
#include "conv_direct.h"
#include "conv_geometry.h"
#include "handlers.h"
#include "plans.h"

namespace jcompress {
namespace {

// The numbers that a `ConvLinear` is made of.
struct LinearNumbers {
  const float* scales;  // [outputs]
  const float* bias;    // [outputs] or null
  int64_t outputs;
  std::array<float, 6> others;

  LinearNumbers(const ConvImages& g, const ConvWeight& w, const ConvEnd& end)
      : scales(w.scales),
        bias(end.bias),
        outputs(w.outputs),
        others{g.scale[0],       g.zero ? g.zero[0] : 0.0f,
               end.y_inverse,    end.addend_integers ? 1.0f : 0.0f,
               end.addend_scale, end.addend_zero} {}

  bool operator==(const LinearNumbers& other) const {
    return outputs == other.outputs && !bias == !other.bias &&
           same(others.data(), other.others.data(), 6) && same(scales, other.scales, outputs) &&
           (!bias || same(bias, other.bias, outputs));
  }

 private:
  static bool same(const float* a, const float* b, int64_t count) {
    return std::memcmp(a, b, static_cast<size_t>(count) * sizeof(float)) == 0;
  }
};

// A weight cut into blocks, and what the kernels make of it.
struct PackedWeight {
  const int8_t* values = nullptr;
  List<ConvBlock> blocks;
  List<int64_t> starts;  // of each in `bytes`
  int64_t size = 0;      // of all in `bytes`
  Buffer<int8_t> bytes{0};
  Buffer<int32_t> sums{0};
  Buffer<ConvLinear> linear{0};
};

// A packed weight that stays, with numbers that its blocks' `linear` are made of.
class KeptWeight {
 public:
  KeptWeight(std::unique_ptr<PackedWeight> packed, const LinearNumbers* numbers)
      : packed_(std::move(packed)), copies_(numbers ? 2 * numbers->outputs : 0) {
    if (!numbers) return;
    const size_t bytes = static_cast<size_t>(numbers->outputs) * sizeof(float);
    numbers_ = std::make_unique<LinearNumbers>(*numbers);
    numbers_->scales = copies_.data();
    std::memcpy(copies_.data(), numbers->scales, bytes);
    if (!numbers->bias) return;
    numbers_->bias = copies_.data() + numbers->outputs;
    std::memcpy(copies_.data() + numbers->outputs, numbers->bias, bytes);
  }

  const PackedWeight& packed() const { return *packed_; }
  // Whether `linear` is there, and made of these numbers.
  bool fits(const LinearNumbers& numbers) const { return numbers_ && *numbers_ == numbers; }

 private:
  std::unique_ptr<PackedWeight> packed_;
  std::unique_ptr<LinearNumbers> numbers_;
  Buffer<float> copies_;
};

// The state of a call's place: see XLA's `State`.
class ConvPlan {
 public:
  static ffi::TypeId id;
  static constexpr const char* kName = "jcompress_conv_plan";

  Geometry geometry{};
  int64_t line = 1;  // positions of which each is as far from the one before
  int64_t groups = 1;
  int x_bits = 8, y_bits = 8;
  bool y_symmetric = true;
  Function activation = Function::kNone;
  bool fixed = false;  // the weight is a constant of the program

  // To be called once the geometry is set.
  void find_line() {
    const Geometry& g = geometry;
    line = g.out.back();
    for (size_t l = 0; l < g.lines.size(); ++l) {
      if (g.lines[l] != static_cast<int64_t>(l) * line * g.stride) return;
    }
    line = g.positions;
  }

  // The weight that was kept; null if there is none.
  std::shared_ptr<const KeptWeight> kept() const {
    const std::lock_guard lock(mutex_);
    return kept_;
  }

  // Of several that come at once the last one's stays: they are equal.
  void keep(std::shared_ptr<const KeptWeight> made) const {
    const std::lock_guard lock(mutex_);
    kept_ = std::move(made);
  }

 private:
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const KeptWeight> kept_{};
};

inline ffi::TypeId ConvPlan::id{};

}  // namespace
}  // namespace jcompress
