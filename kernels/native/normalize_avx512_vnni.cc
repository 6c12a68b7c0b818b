#include "normalize_kernels.h"

namespace jcompress {

NormalizeRows avx512_vnni_normalize() { return &normalize_rows<WideFloats>; }

}  // namespace jcompress
