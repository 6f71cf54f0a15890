// One pass of one thread through the model: up to kTokens tokens, from their ids to the logits.
// A part is a range of channels, in whole blocks: their norms, neurons, products and averages are done together, so that
// threads need only wait for each other where all events, or all of the residual, are read.
#include "elementwise.h"

namespace {

using Value = float;
inline const float *scale_of(const Site &site) { return site.scale; }

}  // namespace

#include "products.h"

namespace {

struct Range {
  int begin, end;
};

// A thread that is late goes through the sections without computing a part, perhaps after the next pass has begun: `pass_` is
// read only inside of `section`.
class Walker {
 public:
  Walker(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first)
      : model_(model),
        worker_(worker),
        pass_(pass),
        share_(share),
        section_(first - 1),
        products_(worker, worker.scratch, pass, static_cast<int>(model.range.levels)) {}

  uint64_t run() {
    section([this](int part) { embed(part); });
    for (int i = 0; i < 2 * model_.layers; ++i) {
      const Mix &mix = model_.mixes[i];
      if (mix.is_time)
        time_mix(mix);
      else
        channel_mix(mix);
    }
    section([this](int part) { listen_head(part); });
    section([this](int part) { head(part); });
    return section_;
  }

 private:
  template <class Work>
  void section(const Work &work) {
    ++section_;
    for (int part = -1; (part = share_.next(share_.team, section_, part, worker_.index)) >= 0;) work(part);
  }

  // The channels of a part are the outputs of its panels.
  Range outputs_of(const Site &site, int part) const {
    const auto begin = [&](int of) {
      const int panel = site.panels_of[of];
      const int output = panel < site.panels_of[model_.threads] ? site.panels[panel].begin : site.outputs;
      return output < site.outputs ? output : site.outputs;
    };
    return {begin(part), begin(part + 1)};
  }

  Range channels_of(int part) const { return outputs_of(*model_.mixes->receptance, part); }
  float *row(float *of, int t) const { return of + static_cast<int64_t>(t) * model_.stride; }
  float *state(int t) const { return pass_.rows[t].state; }
  float *hidden(int t) const { return model_.hidden + static_cast<int64_t>(t) * model_.hidden_stride; }

  void embed(int part) {
    const int channels = model_.channels;
    const Range own = channels_of(part);
    float *values = worker_.scratch;
    for (int t = 0; t < pass_.tokens; ++t) {
      const int64_t id = pass_.rows[t].id;
      const int8_t *__restrict integers = model_.embedding + id * channels;
      const float scale = model_.embedding_scale[id];
      if (model_.spike_embedding)
        for (int c = 0; c < channels; ++c) values[c] = integers[c] >= 0 ? 1.0f : 0.0f;
      else
        for (int c = 0; c < channels; ++c) values[c] = static_cast<float>(integers[c]) * scale;
      normalise(values, moments(values, channels), model_.ln0, own.begin, own.end, row(model_.x, t));
    }
  }

  // normed = norm(x), and the events of the neurons in front of the given sites, which read it mixed with the token before.
  void listen(const Mix &mix, const Site *const *sites, const float *const *weights, int count, int part) {
    const Range own = channels_of(part);
    if (own.begin == own.end) return;
    float *mixed = worker_.scratch;
    const float *last = nullptr;
    for (int t = 0; t < pass_.tokens; ++t) {
      float *shift = state(t) + mix.shift;
      if (t == 0 || state(t - 1) != state(t)) last = shift;
      float *normed = row(model_.normed, t);
      const float *x = row(model_.x, t);
      normalise(x, moments(x, model_.channels), mix.norm, own.begin, own.end, normed);
      for (int i = 0; i < count; ++i) {
        mix_tokens(last, normed, weights[i], own.begin, own.end, mixed);
        fire(model_, *sites[i], mixed, own.begin, own.end, state(t), t);
      }
      last = normed;
      if (t + 1 == pass_.tokens || state(t + 1) != state(t))
        std::memcpy(shift + own.begin, last + own.begin, sizeof(float) * (own.end - own.begin));
    }
  }

  void add_to_residual(int t, const float *__restrict y, Range own) {
    float *__restrict x = row(model_.x, t);
    for (int c = own.begin; c < own.end; ++c) x[c] += y[c];
  }

  void time_mix(const Mix &mix) {
    const Site *const sites[] = {mix.key, mix.value, mix.receptance};
    const float *const weights[] = {mix.mix_k, mix.mix_v, mix.mix_r};
    float *const outs[] = {model_.k, model_.v, model_.r};
    section([&](int part) { listen(mix, sites, weights, 3, part); });
    section([&](int part) {
      for (int i = 0; i < 3; ++i) {
        products_.list(*sites[i], i, part, section_);
        products_.multiply(*sites[i], i, part, outs[i], model_.stride);
      }
      products_.flush();
      const Range own = channels_of(part);
      for (int t = 0; t < pass_.tokens; ++t) {
        wkv(mix, row(model_.k, t), row(model_.v, t), row(model_.r, t), own.begin, own.end, model_.channels,
            state(t) + mix.wkv, worker_.scratch);
        fire(model_, *mix.output, worker_.scratch, own.begin, own.end, state(t), t);
      }
    });
    section([&](int part) {
      products_.list(*mix.output, 0, part, section_);
      products_.multiply(*mix.output, 0, part, model_.k, model_.stride);
      products_.flush();
      for (int t = 0; t < pass_.tokens; ++t) add_to_residual(t, row(model_.k, t), channels_of(part));
    });
  }

  void channel_mix(const Mix &mix) {
    const Site *const sites[] = {mix.key, mix.receptance};
    const float *const weights[] = {mix.mix_k, mix.mix_r};
    section([&](int part) { listen(mix, sites, weights, 2, part); });
    section([&](int part) {
      products_.list(*mix.key, 0, part, section_);
      products_.multiply(*mix.key, 0, part, model_.hidden, model_.hidden_stride);
      products_.list(*mix.receptance, 1, part, section_);
      products_.multiply(*mix.receptance, 1, part, model_.r, model_.stride);
      products_.flush();
      const Range own = outputs_of(*mix.key, part);
      for (int t = 0; t < pass_.tokens; ++t) {
        float *__restrict values = hidden(t);
        for (int c = own.begin; c < own.end; ++c) {
          const float positive = values[c] > 0.0f ? values[c] : 0.0f;
          values[c] = positive * positive;
        }
        fire(model_, *mix.value, values, own.begin, own.end, state(t), t);
      }
    });
    section([&](int part) {
      products_.list(*mix.value, 0, part, section_);
      products_.multiply(*mix.value, 0, part, model_.k, model_.stride);
      products_.flush();
      const Range own = channels_of(part);
      for (int t = 0; t < pass_.tokens; ++t) {
        float *__restrict y = row(model_.k, t);
        const float *__restrict r = row(model_.r, t);
        for (int c = own.begin; c < own.end; ++c) y[c] *= sigmoid(r[c]);
        add_to_residual(t, y, own);
      }
    });
  }

  void listen_head(int part) {
    const Range own = channels_of(part);
    float *normed = worker_.scratch;
    for (int t = 0; t < pass_.tokens; ++t) {
      const float *x = row(model_.x, t);
      normalise(x, moments(x, model_.channels), model_.ln_out, own.begin, own.end, normed);
      fire(model_, *model_.head, normed, own.begin, own.end, state(t), t);
    }
  }

  void head(int part) {
    products_.list(*model_.head, 0, part, section_);
    int wanted = 0;
    for (int t = 0; t < pass_.tokens; ++t) wanted += pass_.rows[t].logits != nullptr;
    products_.multiply_into(*model_.head, 0, part, model_.outputs, wanted, [&](int t) { return pass_.rows[t].logits; });
    products_.flush();
  }

  Model &model_;
  Worker &worker_;
  const Pass &pass_;
  const Share &share_;
  uint64_t section_;
  Products<Pass> products_;
};

uint64_t run(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first) {
  return Walker(model, worker, pass, share, first).run();
}

}  // namespace

namespace spikegpt::engine {
namespace SPIKEGPT_ISA {

#define SPIKEGPT_QUOTE(name) #name
#define SPIKEGPT_STRING(name) SPIKEGPT_QUOTE(name)

extern const Walk walk;
const Walk walk = {SPIKEGPT_STRING(SPIKEGPT_ISA), place, run};

}  // namespace SPIKEGPT_ISA
}  // namespace spikegpt::engine
