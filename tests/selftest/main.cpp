// The C++ kernels and the engine, without Python, beside vectors from the reference: for machines that are only emulated.
#include <cstdio>
#include <exception>

#include "vectors.h"

void test_kernels(const Vectors &vectors);
void test_engine(const Vectors &vectors);
void test_fixed(const Vectors &vectors);

int main(int count, char **arguments) {
  if (count != 2) {
    std::fprintf(stderr, "%s VECTORS\n", arguments[0]);
    return 2;
  }
  try {
    const Vectors vectors(arguments[1]);
    test_kernels(vectors);
    test_engine(vectors);
    test_fixed(vectors);
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  std::printf("%d results compared, %d wrong\n", compared().checks, compared().failures);
  return compared().failures != 0;
}
