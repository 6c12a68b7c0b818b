// What is the same in every call of products at one place of a program: weights that are
// constants of the program are laid out once for many rows.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "handlers.h"
#include "plans.h"
#include "product.h"

namespace jcompress {
namespace {

// A weight as `PlainKernels::lay` lays it out.
struct LaidWeight {
  Weight of;
  Buffer<uint8_t> bytes;

  // Scales and zeros are laid out only if there are several for an output.
  bool same(const Weight& w) const {
    const bool groups = w.groups > 1;
    return of.values == w.values && (!groups || (of.scales == w.scales && of.zeros == w.zeros));
  }
};

class ProductPlan {
 public:
  using Laid = std::shared_ptr<const LaidWeight>;

  static ffi::TypeId id;
  static constexpr const char* kName = "jcompress_product_plan";

  explicit ProductPlan(bool fixed) : fixed_(fixed) {}

  // Whether weights are constants of the program.
  bool fixed() const { return fixed_; }

  // Weight number i laid out, now or before; null if another one was, which then stays.
  Laid laid(const PlainKernels& kernels, size_t i, const Weight& w) const {
    {
      const std::lock_guard lock(mutex_);
      if (i < kept_.size() && kept_[i]) return kept_[i]->same(w) ? kept_[i] : nullptr;
    }
    // Others that come at once make the same.
    auto made = std::make_shared<LaidWeight>(
        LaidWeight{w, Buffer<uint8_t>(kernels.laid_bytes(w))});
    kernels.lay(w, made->bytes.data());
    const std::lock_guard lock(mutex_);
    if (i >= kept_.size()) kept_.resize(i + 1);
    kept_[i] = made;
    return made;
  }

 private:
  bool fixed_;
  mutable std::mutex mutex_{};
  mutable std::vector<Laid> kept_{};
};

inline ffi::TypeId ProductPlan::id{};

}  // namespace
}  // namespace jcompress
