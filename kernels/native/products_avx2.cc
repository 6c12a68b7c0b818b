#include "vector_avx2.h"

#include "product_kernels.h"

namespace jcompress {

const Products* avx2_products() {
  static constexpr Products kProducts = products_for<Avx2>();
  return &kProducts;
}

}  // namespace jcompress
