// One pass of one thread through the model: up to kTokens tokens, from their ids to the logits. Local to the translation
// unit, which says before what a `Model` and its `Value` are, what products.h wants to know, and what is done over a run of
// channels between the products: embed, normalise, fire_mixed, fire, wkv, fire_hidden, add, add_gated (elementwise.h).
// A part is a range of channels, in whole blocks: their norms, neurons, products and averages are done together, so that
// threads need only wait for each other where all events, or all of the residual, are read.
#pragma once

#include <utility>

#include "isa.h"
#include "products.h"

namespace {

// A thread that is late goes through the sections without computing a part, perhaps after the next pass has begun: `pass_` is
// read only inside of `section`.
class Walker {
 public:
  using Site = Model::Site;
  using Mix = Model::Mix;
  using Worker = WorkerOf<Value>;
  using Pass = PassOf<Value>;

  Walker(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first)
      : model_(model),
        worker_(worker),
        pass_(pass),
        share_(share),
        section_(first - 1),
        products_(worker, pass, model.levels) {}

  uint64_t run() {
    section([this](int part) {
      for (int t = 0; t < pass_.tokens; ++t)
        embed(model_, pass_.rows[t].id, channels_of(part), worker_.scratch, row(model_.x, t));
    });
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
  Channels outputs_of(const Site &site, int part) const {
    const auto begin = [&](int of) {
      const int panel = site.panels_of[of];
      const int output = panel < site.panels_of[model_.threads] ? site.panels[panel].begin : site.outputs;
      return output < site.outputs ? output : site.outputs;
    };
    return {begin(part), begin(part + 1)};
  }

  // Every block's second half is a channel mix.
  Channels channels_of(int part) const { return outputs_of(*model_.mixes[1].receptance, part); }
  Value *row(Value *of, int t) const { return of + static_cast<int64_t>(t) * model_.stride; }
  Value *state(int t) const { return pass_.rows[t].state; }
  Value *hidden(int t) const { return model_.hidden + static_cast<int64_t>(t) * model_.hidden_stride; }

  // normed = norm(x), and the events of the neurons in front of the given sites, which read it mixed with the token before.
  void listen(const Mix &mix, const Site *const *sites, const Model::Mixing *mixings, int count, int part) {
    const Channels own = channels_of(part);
    if (own.begin == own.end) return;
    const Value *last = nullptr;
    for (int t = 0; t < pass_.tokens; ++t) {
      Value *shift = state(t) + mix.shift;
      if (t == 0 || state(t - 1) != state(t)) last = shift;
      Value *normed = row(model_.normed, t);
      normalise(model_, row(model_.x, t), mix.norm, own, normed);
      for (int i = 0; i < count; ++i) {
        fire_mixed(model_, *sites[i], mixings[i], last, normed, own, worker_.scratch, state(t), t);
        if (i == 0) products_.ask_rows(*sites[0], part, own, products_.rows_ahead(*sites[0], part));
      }
      last = normed;
      if (t + 1 == pass_.tokens || state(t + 1) != state(t))
        std::memcpy(shift + own.begin, last + own.begin, sizeof(Value) * (own.end - own.begin));
    }
  }

  // Fires a neuron over its channels in runs, and meanwhile asks for the rows of those that have fired.
  template <class Fire>
  void by_runs(const Site &site, int part, Channels own, const Fire &fire_run) {
    constexpr int kRun = 256;
    int rows = products_.rows_ahead(site, part);
    for (int begin = own.begin; begin < own.end; begin += kRun) {
      const Channels run{begin, begin + kRun < own.end ? begin + kRun : own.end};
      fire_run(run);
      rows = products_.ask_rows(site, part, run, rows);
    }
  }

  // What is read for the first token once the mix is done: by the next one, or in front of the head.
  void ask_after(const Mix &mix, Channels own) {
    if (&mix + 1 < model_.mixes + 2 * model_.layers) {
      ask_listen(*(&mix + 1), own);
    } else {
      ask_norm(model_.ln_out, own);
      ask_neuron(*model_.head, own);
    }
  }

  void ask_listen(const Mix &mix, Channels own) {
    ask_norm(mix.norm, own);
    ask(state(0) + mix.shift, own);
    if (mix.input) {
      ask_mixing(mix.mix_k, own);
      ask_neuron(*mix.input, own);
      return;
    }
    for (const auto &[site, mixing] : {std::pair(mix.key, mix.mix_k), std::pair(mix.receptance, mix.mix_r)}) {
      ask_mixing(mixing, own);
      ask_neuron(*site, own);
    }
    if (!mix.is_time) return;
    ask_mixing(mix.mix_v, own);
    ask_neuron(*mix.value, own);
  }

  // What the average and the neuron after it will read for the first token.
  void ask_wkv(const Mix &mix, int part) {
    const Channels own = channels_of(part);
    ask(mix.decay, own);
    ask(mix.first, own);
    for (int i = 0; i < 3; ++i) ask(state(0) + mix.wkv + static_cast<int64_t>(i) * model_.channels, own);
    ask_neuron(*mix.output, own);
  }

  // A part of a product of every token.
  void multiply(const Site &site, int slot, int part, Value *out, int stride) {
    products_.list(site, slot, part, section_);
    products_.multiply(site, slot, part, out, stride);
  }

  // Where a part's products leave key, value and receptance: channel 0 of the first token, were it of this part, and the next
  // token `stride` values on.
  struct Averaged {
    Value *k, *v, *r;
    int stride;
  };

  // An input's part is its channels of each, padded to whole blocks, one after the other.
  Averaged averaged(const Mix &mix, int part) const {
    if (!mix.input) return {model_.k, model_.v, model_.r, model_.stride};
    const int width = outputs_per_block(mix.input->bits);
    const Channels own = channels_of(part);
    const int padded = (own.end - own.begin + width - 1) / width * width;
    Value *const k = model_.input + 2 * own.begin;
    return {k, k + padded, k + 2 * padded, model_.input_stride};
  }

  void multiply_averaged(const Mix &mix, int part, const Averaged &to) {
    if (mix.input) {
      multiply(*mix.input, 0, part, model_.input, to.stride);
    } else {
      multiply(*mix.key, 0, part, to.k, to.stride);
      multiply(*mix.value, 1, part, to.v, to.stride);
      multiply(*mix.receptance, 2, part, to.r, to.stride);
    }
    products_.flush();
  }

  void time_mix(const Mix &mix) {
    const Site *const apart[] = {mix.key, mix.value, mix.receptance}, *const shared[] = {mix.input};
    const Model::Mixing mixings[] = {mix.mix_k, mix.mix_v, mix.mix_r};
    section([&](int part) { listen(mix, mix.input ? shared : apart, mixings, mix.input ? 1 : 3, part); });
    section([&](int part) {
      ask_wkv(mix, part);
      const Averaged to = averaged(mix, part);
      multiply_averaged(mix, part, to);
      const Channels own = channels_of(part);
      for (int t = 0; t < pass_.tokens; ++t) {
        const int64_t at = static_cast<int64_t>(t) * to.stride;
        by_runs(*mix.output, part, own, [&](Channels run) {
          wkv(model_, mix, to.k + at, to.v + at, to.r + at, run, state(t) + mix.wkv, worker_.scratch);
          fire(model_, *mix.output, worker_.scratch, run, state(t), t);
        });
      }
    });
    section([&](int part) {
      ask_after(mix, channels_of(part));
      multiply(*mix.output, 0, part, model_.k, model_.stride);
      products_.flush();
      for (int t = 0; t < pass_.tokens; ++t) add(model_, row(model_.k, t), channels_of(part), row(model_.x, t));
    });
  }

  void channel_mix(const Mix &mix) {
    const Site *const sites[] = {mix.key, mix.receptance};
    const Model::Mixing mixings[] = {mix.mix_k, mix.mix_r};
    section([&](int part) { listen(mix, sites, mixings, 2, part); });
    section([&](int part) {
      ask_neuron(*mix.value, outputs_of(*mix.key, part));
      multiply(*mix.key, 0, part, model_.hidden, model_.hidden_stride);
      multiply(*mix.receptance, 1, part, model_.r, model_.stride);
      products_.flush();
      const Channels own = outputs_of(*mix.key, part);
      for (int t = 0; t < pass_.tokens; ++t)
        by_runs(*mix.value, part, own, [&](Channels run) { fire_hidden(model_, *mix.value, hidden(t), run, state(t), t); });
    });
    section([&](int part) {
      ask_after(mix, channels_of(part));
      multiply(*mix.value, 0, part, model_.k, model_.stride);
      products_.flush();
      for (int t = 0; t < pass_.tokens; ++t)
        add_gated(model_, row(model_.k, t), row(model_.r, t), channels_of(part), row(model_.x, t));
    });
  }

  void listen_head(int part) {
    const Channels own = channels_of(part);
    for (int t = 0; t < pass_.tokens; ++t) {
      normalise(model_, row(model_.x, t), model_.ln_out, own, worker_.scratch);
      by_runs(*model_.head, part, own, [&](Channels run) { fire(model_, *model_.head, worker_.scratch, run, state(t), t); });
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
  Products products_;
};

uint64_t run(Model &model, Walker::Worker &worker, const Walker::Pass &pass, const Share &share, uint64_t first) {
  return Walker(model, worker, pass, share, first).run();
}

// Four places are read in turn: faster than one after the other.
uint64_t read(const uint8_t *lines, int64_t bytes) {
  const int64_t count = bytes / 8, quarter = count / 32 * 8;
  const uint64_t *words = reinterpret_cast<const uint64_t *>(lines);
  uint64_t sums[4][8] = {}, total = 0;
  for (int64_t i = 0; i < quarter; i += 8)
    for (int place = 0; place < 4; ++place)
      for (int lane = 0; lane < 8; ++lane) sums[place][lane] += words[place * quarter + i + lane];
  for (int64_t i = 4 * quarter; i < count; ++i) total += words[i];
  for (const auto &of : sums)
    for (const uint64_t sum : of) total += sum;
  return total;
}

}  // namespace

// Defines the constant by which the engine finds this unit's code.
#define SPIKEGPT_DEFINE_WALK(of)                    \
  namespace of::SPIKEGPT_ISA {                      \
  extern const WalkOf<Model> walk;                  \
  const WalkOf<Model> walk = {SPIKEGPT_ISA_NAME, place, run, read}; \
  }
