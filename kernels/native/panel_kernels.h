// Products of many rows with a packed weight. As floats, rows of activations lie across the
// lanes of vectors (`Panels`), the weight is unpacked block by block, and each of its numbers
// multiplies a whole vector of rows. As integers, its outputs lie across the lanes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "panel_floats.h"
#include "panel_groups.h"
#include "panel_narrow.h"
#include "panel_rows.h"
#include "panel_strips.h"
#include "product.h"

namespace jcompress {
namespace {

template <class V>
void multiply_panels(const Panels& p, const Weight& w, const Result& result,
                     int64_t first, int64_t last, int64_t band0, int64_t band1) {
  for (int64_t n = first; n < last; n += kChunk) {
    multiply_floats<V>(p, w, result, n, std::min(last, n + kChunk), band0, band1);
  }
}

template <class V>
constexpr ManyRows many_rows() {
  ManyRows many{V::kLanes,     0,
                V::kFloatRows, V::kGroupedFloatRows,
                &pack_band<V>, &multiply_panels<V>,
                {},            {}};
  if constexpr (V::kStrips) {
    using Cell = typename V::Cell;
    many.plain = {sizeof(Cell), V::kStepInputs == 4, &pack_plain_rows<V, Cell>,
                  &multiply_rows<V>, &lay_weight<V>, &laid_bytes<V>};
    if constexpr (V::kStepInputs == 2) {
      many.narrow = {1, true, &pack_plain_rows<V, int8_t>, &multiply_narrow_rows<V>,
                     nullptr, nullptr};
    }
  }
  return many;
}

}  // namespace
}  // namespace jcompress
