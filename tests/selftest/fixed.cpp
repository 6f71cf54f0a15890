// The integers-only engine beside its specification, bit for bit: whole and in pieces, with one thread and with two.
#include "../../src/spikegpt/engine/csrc/fixed/engine.h"

#include "engine_case.h"

namespace {

using spikegpt::engine::fixed::Engine;
using spikegpt::engine::fixed::Numbers;

Numbers formats_of(const Case &given) {
  Numbers formats;
  each_line(given, "formats", [&](std::istream &words) {
    std::string name;
    words >> name >> formats[name];
  });
  return formats;
}

std::vector<float> as_floats(const std::vector<int32_t> &integers) { return {integers.begin(), integers.end()}; }

// FNV-1a over the logits of one token.
int64_t checksum(const int32_t *logits, int64_t count) {
  uint32_t sum = 2166136261u;
  for (int64_t o = 0; o < count; ++o) sum = (sum ^ static_cast<uint32_t>(logits[o])) * 16777619u;
  return sum;
}

// Logits and state after pieces of so many tokens.
void test_pieces(const Case &given, Engine &engine, int64_t piece) {
  const Array &ids = given.at("ids");
  const int64_t tokens = ids.count(), outputs = engine.outputs();
  const std::vector<float> start = given.at("state").values();
  std::vector<int32_t> state(start.begin(), start.end()), logits(static_cast<std::size_t>(tokens * outputs));
  for (int64_t from = 0; from < tokens; from += piece)
    engine.run(ids.integers() + from, std::min(piece, tokens - from), state.data(), logits.data() + from * outputs,
               false, false, nullptr);
  given.compare("state_out", as_floats(state), 0.0f);
  if (given.has("logits")) given.compare("logits", as_floats(logits), 0.0f);
  const int64_t *expected = given.at("checksums").integers();
  float same = 0.0f;
  for (int64_t t = 0; t < tokens; ++t) same += checksum(logits.data() + t * outputs, outputs) == expected[t];
  compare_values("checksums of " + std::to_string(tokens) + " vectors of logits, " + std::to_string(engine.threads()) +
                     " threads, " + std::to_string(piece) + " tokens at a time",
                 {same}, {static_cast<float>(tokens)}, 0.0f);
}

void test_fixed_case(const Case &given) {
  const auto plan = plan_of(given);
  const auto tensors = tensors_of(given);
  for (const int threads : {1, 2}) {
    Engine engine(settings_of(given, threads), plan, tensors, formats_of(given));
    for (const int64_t piece : {given.at("ids").count(), int64_t{threads == 1 ? 1 : 7}}) test_pieces(given, engine, piece);
  }
}

}  // namespace

void test_fixed(const Vectors &vectors) { each_case(vectors, "fixed", test_fixed_case); }
