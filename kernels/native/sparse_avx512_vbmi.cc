#include "sparse_products.h"

namespace jcompress {

const SparseProducts* avx512_vbmi_sparse_products() { return &kSparseProducts; }

}  // namespace jcompress
