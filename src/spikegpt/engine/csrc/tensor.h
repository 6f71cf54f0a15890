// Tensors as Python hands them over.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace spikegpt::engine {

// A tensor that Python keeps alive while the engine is built.
struct Tensor {
  enum Type { kFloat, kInt8, kUint8, kInt32 } type;
  std::vector<int64_t> shape;
  const void *data;
};

using Tensors = std::map<std::string, Tensor>;

}  // namespace spikegpt::engine
