#include "vector_avx512.h"

#include "product_kernels.h"

namespace jcompress {

const Products* avx512_vbmi_products() {
  static constexpr Products kProducts = products_for<Avx512>();
  return &kProducts;
}

}  // namespace jcompress
