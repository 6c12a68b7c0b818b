// Blocks of memory that a thread has used and uses again.

#include "buffer.h"

#include <array>
#include <new>

namespace jcompress {
namespace {

constexpr std::align_val_t kLine{64};

// Under a sanitizer each block is of its own size, and is given back.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kKinds = 0;
#else
constexpr size_t kKinds = 14;
#endif
constexpr size_t kEach = 2, kEachSmall = 16;
constexpr size_t kLeast = 128;

// Sizes are powers of two, from kLeast to a megabyte.
size_t size_of(size_t kind) { return kLeast << kind; }

// How many a thread keeps of a kind: of small ones a call has several at a time.
size_t most_of(size_t kind) { return size_of(kind) <= 16384 ? kEachSmall : kEach; }

size_t kind_of(size_t bytes) {
  size_t kind = 0;
  while (kind < kKinds && size_of(kind) < bytes) ++kind;
  return kind;
}

struct Kept {
  struct Kind {
    std::array<void*, kEachSmall> blocks;
    size_t count = 0;
  };

  ~Kept() {
    for (Kind& kind : kinds) {
      while (kind.count > 0) ::operator delete(kind.blocks[--kind.count], kLine);
    }
  }

  std::array<Kind, kKinds + 1> kinds;
};

thread_local Kept blocks_of_thread;

}  // namespace

void* take_block(size_t bytes) {
  const size_t kind = kind_of(bytes);
  if (kind >= kKinds) return ::operator new(bytes, kLine);
  Kept::Kind& mine = blocks_of_thread.kinds[kind];
  if (mine.count > 0) return mine.blocks[--mine.count];
  return ::operator new(size_of(kind), kLine);
}

void give_block(void* block, size_t bytes) {
  const size_t kind = kind_of(bytes);
  if (kind < kKinds) {
    Kept::Kind& mine = blocks_of_thread.kinds[kind];
    if (mine.count < most_of(kind)) {
      mine.blocks[mine.count++] = block;
      return;
    }
  }
  ::operator delete(block, kLine);
}

}  // namespace jcompress
