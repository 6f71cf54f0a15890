// The integer engine beside the float model with the same weights, whole and in pieces, with one thread and with several.
#include "../../src/spikegpt/engine/csrc/engine.h"

#include <sstream>
#include <stdexcept>

#include "../../src/spikegpt/engine/csrc/turn.h"
#include "vectors.h"

namespace {

using namespace spikegpt::engine;

constexpr float kExact = 0.0f, kLogits = 1e-4f, kState = 2e-3f;

// Words of one line of a text that vectors.py wrote.
template <class Read>
void each_line(const Case &given, const char *name, const Read &read) {
  const Array &text = given.at(name);
  std::istringstream lines(std::string(text.bytes.begin(), text.bytes.end()));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    read(words);
    if (!words) throw std::runtime_error(std::string("a line of ") + name + " cannot be read: " + line);
  }
}

Plan plan_of(const Case &given) {
  Plan plan;
  each_line(given, "sites", [&](std::istream &words) {
    SitePlan site{};
    words >> site.matrix >> site.neuron >> site.inputs >> site.outputs >> site.is_signed >> site.membrane;
    plan.sites.push_back(site);
  });
  each_line(given, "mixes", [&](std::istream &words) {
    MixPlan mix{};
    words >> mix.name >> mix.norm >> mix.key >> mix.value >> mix.receptance >> mix.output >> mix.shift >> mix.wkv;
    plan.mixes.push_back(mix);
  });
  return plan;
}

Tensors tensors_of(const Case &given) {
  Tensors tensors;
  each_line(given, "tensors", [&](std::istream &words) {
    std::string name;
    words >> name;
    const Array &array = given.at("tensor/" + name);
    const auto type = array.type == 'f' ? Tensor::kFloat : array.type == 'b' ? Tensor::kInt8 : Tensor::kUint8;
    tensors.emplace(name, Tensor{type, array.shape, array.bytes.data()});
  });
  return tensors;
}

Settings settings_of(const Case &given, int threads) {
  Settings settings{};
  settings.channels = static_cast<int>(given.integer("channels"));
  settings.vocab = static_cast<int>(given.integer("vocab"));
  settings.levels = static_cast<int>(given.number("levels"));
  settings.smallest = static_cast<int>(given.number("smallest"));
  settings.hard = given.number("hard") != 0.0f;
  settings.spike_embedding = given.number("spike_embedding") != 0.0f;
  settings.state_size = given.at("state").count();
  settings.threads = threads;
  return settings;
}

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
