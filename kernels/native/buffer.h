// Memory for the time of a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

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

// For containers whose memory is that of buffers.
template <class T>
struct Blocks {
  using value_type = T;
  Blocks() = default;
  template <class Other>
  Blocks(const Blocks<Other>&) {}  // from one type to another, as containers need it
  T* allocate(size_t count) { return static_cast<T*>(take_block(count * sizeof(T))); }
  void deallocate(T* block, size_t count) { give_block(block, count * sizeof(T)); }
  bool operator==(const Blocks&) const { return true; }
  bool operator!=(const Blocks&) const { return false; }
};

template <class T>
using List = std::vector<T, Blocks<T>>;

}  // namespace
}  // namespace jcompress
