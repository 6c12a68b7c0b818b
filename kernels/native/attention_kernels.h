// The attention of one translation unit, in the widest vectors that it has.
#pragma once

#include "attention_few.h"
#include "attention_many.h"

namespace jcompress {
namespace {

inline void attend(const AttentionShape& shape, const AttentionRows& rows) {
  if (FewRows<FewFloats>::takes(shape, rows)) {
    FewRows<FewFloats>::attend(shape, rows);
  } else if (rows.count <= FewFloats::kLanes) {
    ManyRows<FewFloats, 1>::attend(shape, rows);
  } else if (rows.count <= WideFloats::kLanes) {
    ManyRows<WideFloats, 1>::attend(shape, rows);
  } else {
    ManyRows<WideFloats, 2>::attend(shape, rows);
  }
}

constexpr AttentionKernels kAttention{2 * WideFloats::kLanes, &attend};

}  // namespace
}  // namespace jcompress
