#include "normalize_kernels.h"

namespace jcompress {

NormalizeRows avx2_normalize() { return &normalize_rows<WideFloats>; }

}  // namespace jcompress
