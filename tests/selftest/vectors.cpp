#include "vectors.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace {

template <class T>
T take(std::istream &file) {
  T value;
  if (!file.read(reinterpret_cast<char *>(&value), sizeof value)) throw std::runtime_error("the vectors end too early");
  return value;
}

std::size_t size_of(char type) {
  switch (type) {
    case 'f':
    case 'w':
      return 4;
    case 'h':
      return 2;
    case 'i':
      return 8;
    case 'b':
    case 'B':
      return 1;
  }
  throw std::runtime_error("vectors of an unknown type");
}

}  // namespace

int64_t Array::count() const {
  int64_t total = 1;
  for (const int64_t size : shape) total *= size;
  return total;
}

std::vector<float> Array::values() const {
  std::vector<float> values(static_cast<std::size_t>(count()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (type == 'h') {
      uint16_t half;
      std::memcpy(&half, bytes.data() + 2 * i, sizeof half);
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(&values[i], &bits, sizeof bits);
    } else if (type == 'f') {
      std::memcpy(&values[i], bytes.data() + 4 * i, sizeof(float));
    } else if (type == 'w') {
      int32_t word;
      std::memcpy(&word, bytes.data() + 4 * i, sizeof word);
      values[i] = static_cast<float>(word);
    } else if (type == 'i') {
      values[i] = static_cast<float>(integers()[i]);
    } else {
      values[i] = type == 'b' ? static_cast<float>(static_cast<int8_t>(bytes[i])) : static_cast<float>(bytes[i]);
    }
  }
  return values;
}

Vectors::Vectors(const char *path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string("cannot read ") + path);
  for (uint32_t left = take<uint32_t>(file); left > 0; --left) {
    std::string name(take<uint32_t>(file), '\0');
    file.read(&name[0], static_cast<std::streamsize>(name.size()));
    Array array;
    array.type = take<char>(file);
    array.shape.resize(take<uint8_t>(file));
    for (int64_t &size : array.shape) size = take<int64_t>(file);
    array.bytes.resize(static_cast<std::size_t>(array.count()) * size_of(array.type));
    if (!file.read(reinterpret_cast<char *>(array.bytes.data()), static_cast<std::streamsize>(array.bytes.size())))
      throw std::runtime_error("the vectors end too early");
    arrays_.emplace(std::move(name), std::move(array));
  }
}

const Array &Case::at(const std::string &name) const {
  const auto found = vectors_.arrays().find(prefix_ + name);
  if (found == vectors_.arrays().end()) throw std::runtime_error("there are no vectors " + prefix_ + name);
  return found->second;
}

void Case::compare(const std::string &name, const std::vector<float> &actual, float tolerance) const {
  compare_values(prefix_ + name, actual, at(name).values(), tolerance);
}

void compare_values(const std::string &name, const std::vector<float> &actual, const std::vector<float> &expected,
                    float tolerance) {
  ++compared().checks;
  float largest = 1e-30f, worst = 0.0f;
  for (const float value : expected) largest = std::fmax(largest, std::fabs(value));
  bool same = actual.size() == expected.size();
  for (std::size_t i = 0; same && i < actual.size(); ++i) {
    const float difference = std::fabs(actual[i] - expected[i]);
    if (!(difference <= tolerance * largest)) same = false;  // NaN is not the same as anything
    worst = std::fmax(worst, difference);
  }
  if (same) return;
  ++compared().failures;
  std::printf("%s: %zu values instead of %zu, off by %g of %g\n", name.c_str(), actual.size(), expected.size(), worst,
              largest);
}

void each_case(const Vectors &vectors, const std::string &operation, void (*test)(const Case &)) {
  int number = 0;
  for (;; ++number) {
    const Case next(vectors, operation + "/" + std::to_string(number) + "/");
    if (!next.has("shape")) break;
    test(next);
  }
  if (number == 0) throw std::runtime_error("there are no vectors of " + operation);
}

Compared &compared() {
  static Compared counted;
  return counted;
}
