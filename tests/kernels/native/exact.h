// What the drivers share: buffers of exactly a size, and numbers drawn at random.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>

#include "floats.h"
#include "product.h"

namespace jcompress {
namespace {

// As `malloc` gives it: what follows the last element belongs to nobody.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t count)
      : count_(count), data_(static_cast<T*>(std::malloc(count * sizeof(T)))) {}
  Exact(const Exact&) = delete;
  ~Exact() { std::free(data_); }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  int64_t count_;
  T* data_;
};

class Draw {
 public:
  explicit Draw(uint64_t seed) : generator_(seed) {}
  int64_t integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(generator_);
  }
  bool coin() { return integer(0, 1); }
  float uniform(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(generator_);
  }
  template <class T>
  T one_of(std::initializer_list<T> from) {
    return from.begin()[integer(0, static_cast<int64_t>(from.size()) - 1)];
  }

 private:
  std::mt19937_64 generator_;
};

void store(float x, Float dtype, void* out, int64_t i) {
  if (dtype == Float::kF32) {
    std::memcpy(static_cast<float*>(out) + i, &x, sizeof(x));
  } else {
    const uint16_t half = dtype == Float::kBF16 ? to_bf16(x) : to_f16(x);
    std::memcpy(static_cast<uint16_t*>(out) + i, &half, sizeof(half));
  }
}

int64_t bytes_of(Float dtype) {
  return dtype == Float::kS8 ? 1 : dtype == Float::kF32 ? 4 : 2;
}

}  // namespace
}  // namespace jcompress
