// The sparse kernels of one translation unit, in the widest vectors that it has.
#pragma once

#include "sparse_blocks.h"
#include "sparse_rows.h"

namespace jcompress {
namespace {

constexpr SparseProducts kSparseProducts{
    &lay_table<WideFloats>,
    &coded_size<WideFloats, FewFloats>,
    &coded_pieces<WideFloats, FewFloats>,
    &pack_coded<WideFloats, FewFloats>,
    &multiply_coded<WideFloats, FewFloats>,
    &blocks_size<WideFloats, FewFloats>,
    &blocks_pieces<WideFloats, FewFloats>,
    &pack_blocks<WideFloats, FewFloats>,
    &multiply_blocks<WideFloats, FewFloats>,
};

}  // namespace
}  // namespace jcompress
