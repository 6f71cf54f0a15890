// What is built once for each instruction set, and which of it this machine can run. A unit of code is a constant of the same
// name in namespaces baseline, avx2 and avx512vnni: SPIKEGPT_EACH_ISA(SPIKEGPT_DECLARE_WALK), for example. No function is
// defined here that a unit for one instruction set could bring into the library for all.
#pragma once

// Best first.
#if defined(SPIKEGPT_X86)
#define SPIKEGPT_EACH_ISA(of) of(avx512vnni) of(avx2) of(baseline)
#else
#define SPIKEGPT_EACH_ISA(of) of(baseline)
#endif

// The name of the instruction set that a unit is built for.
#define SPIKEGPT_QUOTE(name) #name
#define SPIKEGPT_STRING(name) SPIKEGPT_QUOTE(name)
#define SPIKEGPT_ISA_NAME SPIKEGPT_STRING(SPIKEGPT_ISA)

namespace spikegpt::engine {

// Whether this machine has the instruction set.
bool runs(const char *isa);

// The first of the units that this machine runs and that is called `name` ("": whatever it is called), or null.
template <class Code, int count>
const Code *best(const Code *const (&units)[count], const char *name) {
  for (const Code *unit : units) {
    const char *a = unit->name, *b = name;
    while (*a && *a == *b) ++a, ++b;
    if ((!*name || *a == *b) && runs(unit->name)) return unit;
  }
  return nullptr;
}

}  // namespace spikegpt::engine
