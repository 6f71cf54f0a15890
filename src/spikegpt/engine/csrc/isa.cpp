#include "isa.h"

#include <cstring>

namespace spikegpt::engine {

bool runs(const char *isa) {
#if defined(SPIKEGPT_X86)
  __builtin_cpu_init();
  if (!std::strcmp(isa, "avx512vnni"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
  if (!std::strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2");
#endif
  return !std::strcmp(isa, "baseline");
}

}  // namespace spikegpt::engine
