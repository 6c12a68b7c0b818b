// Memory for the time of a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace jcompress {

// A block of at least so many bytes, aligned for any vector: one that this thread gave
// back, if there is one. A program of many short calls otherwise spends a tenth of its
// time on memory. A thread keeps at most four megabytes.
void* take_block(size_t bytes);
void give_block(void* block, size_t bytes);

namespace {

// An array that is not initialized, aligned for any vector.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : Buffer(static_cast<size_t>(count > 0 ? count : 1) * sizeof(T), Bytes{}) {}
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }

 private:
  struct Bytes {};
  struct Give {
    size_t bytes;
    void operator()(T* p) const { give_block(p, bytes); }
  };
  Buffer(size_t bytes, Bytes)
      : data_(static_cast<T*>(take_block(bytes)), Give{bytes}) {}

  std::unique_ptr<T, Give> data_;
};

}  // namespace
}  // namespace jcompress
