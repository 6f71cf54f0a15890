// The integer engine beside the float model with the same weights, whole and in pieces, with one thread and with several.
#include "../../src/spikegpt/engine/csrc/engine.h"

#include "../../src/spikegpt/engine/csrc/turn.h"
#include "engine_case.h"

namespace {

using namespace spikegpt::engine;

constexpr float kExact = 0.0f, kLogits = 1e-4f, kState = 2e-3f;

void test_texts(const Case &given, Engine &engine) {
  const Array &ids = given.at("ids");
  const int64_t tokens = ids.count(), vocab = engine.vocab();
  std::vector<float> state = given.at("state").values(), logits(static_cast<std::size_t>(tokens * vocab));
  engine.run(ids.integers(), tokens, state.data(), logits.data(), false, false, nullptr);
  given.compare("logits", logits, kLogits);
  given.compare("state_out", state, kState);
  std::vector<float> again = given.at("state").values(), piece(logits.size());
  const int64_t cut = tokens / 3;
  engine.run(ids.integers(), cut, again.data(), piece.data(), false, false, nullptr);
  engine.run(ids.integers() + cut, tokens - cut, again.data(), piece.data() + cut * vocab, false, true, nullptr);
  compare_values("logits in pieces, the second with every weight read", piece, logits, kExact);
  compare_values("the state after pieces", again, state, kExact);
}

// A text chosen by the largest logits.
void test_turns(const Case &given, Engine &engine) {
  std::vector<float> state = given.at("state").values(), chosen;
  const Array &ids = given.at("ids");
  Sequence sequence;
  sequence.state = state.data();
  sequence.state_size = engine.state_size();
  sequence.unread.assign(ids.integers(), ids.integers() + ids.count());
  Sampling greedy{};
  greedy.temperature = 0.0f;
  sequence.sampler = std::make_shared<Sampler>(greedy, engine.vocab());
  Turns<Engine> turns(engine);
  while (static_cast<int64_t>(chosen.size()) < given.at("chosen").count()) {
    const int64_t token = turns.advance({&sequence}, false, true, nullptr)[0];
    if (token == kNothing) continue;  // it has more to read
    if (token < 0) break;
    chosen.push_back(static_cast<float>(token));
  }
  given.compare("chosen", chosen, kExact);
}

void test_engine_case(const Case &given) {
  const Plan plan = plan_of(given);
  const Tensors tensors = tensors_of(given);
  for (const int threads : {1, 3}) {
    Engine engine(settings_of(given, threads), plan, tensors);
    test_texts(given, engine);
    test_turns(given, engine);
  }
}

}  // namespace

void test_engine(const Vectors &vectors) { each_case(vectors, "engine", test_engine_case); }
