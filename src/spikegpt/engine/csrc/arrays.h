// numpy arrays as tensors of the engine.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "tensor.h"

namespace spikegpt::engine {

namespace nb = nanobind;
using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

inline Tensor view(const std::string &name, const Array &array) {
  Tensor tensor{};
  if (array.dtype() == nb::dtype<float>())
    tensor.type = Tensor::kFloat;
  else if (array.dtype() == nb::dtype<int8_t>())
    tensor.type = Tensor::kInt8;
  else if (array.dtype() == nb::dtype<uint8_t>())
    tensor.type = Tensor::kUint8;
  else if (array.dtype() == nb::dtype<int32_t>())
    tensor.type = Tensor::kInt32;
  else
    throw std::invalid_argument("tensor " + name + " is neither float32, int32, int8 nor uint8");
  for (std::size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(static_cast<int64_t>(array.shape(i)));
  tensor.data = array.data();
  return tensor;
}

// Arrays by name; `kept` holds them for as long as the tensors are read.
inline Tensors view_all(const nb::dict &arrays, std::vector<Array> &kept) {
  Tensors tensors;
  for (auto [name, value] : arrays) {
    kept.push_back(nb::cast<Array>(value));
    const std::string key = nb::cast<std::string>(name);
    tensors.emplace(key, view(key, kept.back()));
  }
  return tensors;
}

}  // namespace spikegpt::engine
