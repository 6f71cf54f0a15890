// Arrays by name, out of a file that vectors.py writes from the reference, and how results are compared with them.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

struct Array {
  char type;  // 'f' float32, 'h' bfloat16, 'i' int64, 'w' int32, 'b' int8, 'B' uint8
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  int64_t count() const;
  const float *floats() const { return reinterpret_cast<const float *>(bytes.data()); }
  const int64_t *integers() const { return reinterpret_cast<const int64_t *>(bytes.data()); }
  // Any type as floats.
  std::vector<float> values() const;
};

class Vectors {
 public:
  explicit Vectors(const char *path);

  const std::unordered_map<std::string, Array> &arrays() const { return arrays_; }

 private:
  std::unordered_map<std::string, Array> arrays_;
};

// One case of one operator: `<operator>/<number>/<name>`.
class Case {
 public:
  Case(const Vectors &vectors, const std::string &prefix) : vectors_(vectors), prefix_(prefix) {}

  bool has(const std::string &name) const { return vectors_.arrays().count(prefix_ + name) != 0; }
  const Array &at(const std::string &name) const;
  float number(const std::string &name) const { return at(name).floats()[0]; }
  int64_t integer(const std::string &name) const { return static_cast<int64_t>(number(name)); }

  // The largest difference is at most `tolerance` of the largest value expected; 0: the very same values.
  void compare(const std::string &name, const std::vector<float> &actual, float tolerance) const;

 private:
  const Vectors &vectors_;
  const std::string prefix_;
};

// The same for any values, under the name that a fault is told by.
void compare_values(const std::string &name, const std::vector<float> &actual, const std::vector<float> &expected,
                    float tolerance);

// Calls test(case) for every case of an operator; at least one must be there.
void each_case(const Vectors &vectors, const std::string &operation, void (*test)(const Case &));

// What was compared, and how much of it was wrong.
struct Compared {
  int checks = 0, failures = 0;
};
Compared &compared();
