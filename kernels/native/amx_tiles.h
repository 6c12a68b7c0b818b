// The tile registers of AMX: eight of sixteen rows of 64 bytes. With
// JCOMPRESS_EMULATED_TILES they are emulated, so that tests can run what uses them on
// a processor without AMX.
#pragma once

#include <cstdint>
#include <cstring>

namespace jcompress {
namespace {

// What configures the registers, palette 1: bytes of a row, and rows, of each.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

#if defined(JCOMPRESS_EMULATED_TILES)

struct EmulatedTiles {
  TileConfig config;
  uint8_t bytes[8][16][64] = {};
};
inline thread_local EmulatedTiles emulated;

inline void configure_tiles(const TileConfig& config) {
  emulated = {};
  emulated.config = config;
}

inline void release_tiles() { emulated = {}; }

template <int kTile>
void zero_tile() {
  std::memset(emulated.bytes[kTile], 0, sizeof(emulated.bytes[kTile]));
}

template <int kTile>
void load_tile(const void* from, int64_t stride) {
  zero_tile<kTile>();
  for (int r = 0; r < emulated.config.rows[kTile]; ++r) {
    std::memcpy(emulated.bytes[kTile][r], static_cast<const char*>(from) + r * stride,
                emulated.config.row_bytes[kTile]);
  }
}

template <int kTile>
void store_tile(void* to, int64_t stride) {
  for (int r = 0; r < emulated.config.rows[kTile]; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, emulated.bytes[kTile][r],
                emulated.config.row_bytes[kTile]);
  }
}

template <int kSum, int kLeft, int kRight, class Byte>
void dot_bytes() {
  const TileConfig& config = emulated.config;
  for (int m = 0; m < config.rows[kSum]; ++m) {
    for (int n = 0; n < config.row_bytes[kSum] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, &emulated.bytes[kSum][m][4 * n], 4);
      for (int k = 0; k < config.row_bytes[kLeft]; ++k) {
        const int8_t right =
            static_cast<int8_t>(emulated.bytes[kRight][k / 4][4 * n + k % 4]);
        sum += int32_t{static_cast<Byte>(emulated.bytes[kLeft][m][k])} * right;
      }
      std::memcpy(&emulated.bytes[kSum][m][4 * n], &sum, 4);
    }
  }
}

template <int kSum, int kLeft, int kRight>
void dot_tiles() {
  dot_bytes<kSum, kLeft, kRight, uint8_t>();
}

template <int kSum, int kLeft, int kRight>
void dot_signed_tiles() {
  dot_bytes<kSum, kLeft, kRight, int8_t>();
}

#else

inline void configure_tiles(const TileConfig& config) {
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

inline void release_tiles() { __asm__ volatile("tilerelease"); }

template <int kTile>
[[gnu::always_inline]] inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}

// Rows of a tile lie `stride` bytes apart.
template <int kTile>
[[gnu::always_inline]] inline void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile)
                   : "memory");
}

template <int kTile>
[[gnu::always_inline]] inline void store_tile(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile)
                   : "memory");
}

// sum[m][n] += left[m][4 k + i] * right[k][4 n + i], left of unsigned, right of signed
// bytes.
template <int kSum, int kLeft, int kRight>
[[gnu::always_inline]] inline void dot_tiles() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft),
                   "i"(kRight));
}

// The same with left of signed bytes.
template <int kSum, int kLeft, int kRight>
[[gnu::always_inline]] inline void dot_signed_tiles() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft),
                   "i"(kRight));
}

#endif

}  // namespace
}  // namespace jcompress
