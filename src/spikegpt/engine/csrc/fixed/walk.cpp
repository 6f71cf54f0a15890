// One pass of one thread through the integers-only model, in the sections of ../walk.cpp.
#include "elementwise.h"

namespace {

using Value = int32_t;
inline const int32_t *scale_of(const Site &site) { return static_cast<const fixed::Site &>(site).multiplier; }

}  // namespace

#include "../products.h"

namespace {

using fixed::Mix;
using fixed::Mixing;
using fixed::Model;
using fixed::Pass;

struct Range {
  int begin, end;
};

// As in ../walk.cpp: outside of `section` nothing of `pass_` is read.
class Walker {
 public:
  Walker(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first)
      : model_(model),
        a_(model.arithmetic),
        worker_(worker),
        pass_(pass),
        share_(share),
        scratch_(reinterpret_cast<int32_t *>(worker.scratch)),
        section_(first - 1),
        products_(worker, scratch_, pass, model.levels) {}

  uint64_t run() {
    section([this](int part) {
      const Range own = channels_of(part);
      for (int t = 0; t < pass_.tokens; ++t) embed(model_, pass_.ids[t], own.begin, own.end, row(model_.x, t));
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
  Range outputs_of(const Site &site, int part) const {
    const auto begin = [&](int of) {
      const int panel = site.panels_of[of];
      const int output = panel < site.panels_of[model_.threads] ? site.panels[panel].begin : site.outputs;
      return output < site.outputs ? output : site.outputs;
    };
    return {begin(part), begin(part + 1)};
  }

  Range channels_of(int part) const { return outputs_of(*model_.mixes->receptance, part); }
  int32_t *row(int32_t *of, int t) const { return of + static_cast<int64_t>(t) * model_.stride; }
  int32_t *hidden(int t) const { return model_.hidden + static_cast<int64_t>(t) * model_.hidden_stride; }

  // normed = norm(x), and what the neurons in front of the given sites make of it, mixed with the token before.
  void listen(const Mix &mix, const fixed::Site *const *sites, const Mixing *mixings, int count, int part) {
    const Range own = channels_of(part);
    if (own.begin == own.end) return;
    int32_t *shift = pass_.state + mix.shift;
    const int32_t *last = shift;
    for (int t = 0; t < pass_.tokens; ++t) {
      int32_t *normed = row(model_.normed, t);
      const int32_t *x = row(model_.x, t);
      normalise(a_, x, moments(a_, x, model_.channels), mix.norm, own.begin, own.end, normed);
      for (int i = 0; i < count; ++i) {
        mix_tokens(a_, last, normed, mixings[i], own.begin, own.end, scratch_);
        fire(model_, *sites[i], scratch_, own.begin, own.end, t);
      }
      last = normed;
    }
    std::memcpy(shift + own.begin, last + own.begin, sizeof(int32_t) * (own.end - own.begin));
  }

  // A part of a product for every token, in the format of its outputs.
  void multiply(const fixed::Site &site, int slot, int part, int32_t *out, int stride) {
    products_.list(site, slot, part, section_);
    products_.multiply(site, slot, part, out, stride);
  }

  void bring_rows(const fixed::Site &site, Range own, int32_t *out, int stride) {
    for (int t = 0; t < pass_.tokens; ++t) bring(site, own.begin, own.end, out + static_cast<int64_t>(t) * stride);
  }

  void time_mix(const Mix &mix) {
    const fixed::Site *const sites[] = {mix.key, mix.value, mix.receptance};
    const Mixing mixings[] = {mix.mix_k, mix.mix_v, mix.mix_r};
    int32_t *const outs[] = {model_.k, model_.v, model_.r};
    section([&](int part) { listen(mix, sites, mixings, 3, part); });
    section([&](int part) {
      const Range own = channels_of(part);
      for (int i = 0; i < 3; ++i) multiply(*sites[i], i, part, outs[i], model_.stride);
      products_.flush();
      for (int i = 0; i < 3; ++i) bring_rows(*sites[i], own, outs[i], model_.stride);
      for (int t = 0; t < pass_.tokens; ++t) {
        wkv(a_, mix, row(model_.k, t), row(model_.v, t), row(model_.r, t), own.begin, own.end, model_.channels,
            pass_.state + mix.wkv, scratch_);
        fire(model_, *mix.output, scratch_, own.begin, own.end, t);
      }
    });
    section([&](int part) {
      const Range own = channels_of(part);
      multiply(*mix.output, 0, part, model_.k, model_.stride);
      products_.flush();
      bring_rows(*mix.output, own, model_.k, model_.stride);
      for (int t = 0; t < pass_.tokens; ++t)
        add(row(model_.k, t), own.begin, own.end, a_.residual_top, row(model_.x, t));
    });
  }

  void channel_mix(const Mix &mix) {
    const fixed::Site *const sites[] = {mix.key, mix.receptance};
    const Mixing mixings[] = {mix.mix_k, mix.mix_r};
    section([&](int part) { listen(mix, sites, mixings, 2, part); });
    section([&](int part) {
      multiply(*mix.key, 0, part, model_.hidden, model_.hidden_stride);
      multiply(*mix.receptance, 1, part, model_.r, model_.stride);
      products_.flush();
      const Range own = outputs_of(*mix.key, part);
      bring_rows(*mix.key, own, model_.hidden, model_.hidden_stride);
      bring_rows(*mix.receptance, channels_of(part), model_.r, model_.stride);
      for (int t = 0; t < pass_.tokens; ++t) fire(model_, *mix.value, hidden(t), own.begin, own.end, t);
    });
    section([&](int part) {
      const Range own = channels_of(part);
      multiply(*mix.value, 0, part, model_.k, model_.stride);
      products_.flush();
      bring_rows(*mix.value, own, model_.k, model_.stride);
      for (int t = 0; t < pass_.tokens; ++t)
        add_gated(a_, row(model_.k, t), row(model_.r, t), own.begin, own.end, row(model_.x, t));
    });
  }

  void listen_head(int part) {
    const Range own = channels_of(part);
    for (int t = 0; t < pass_.tokens; ++t) {
      const int32_t *x = row(model_.x, t);
      normalise(a_, x, moments(a_, x, model_.channels), model_.ln_out, own.begin, own.end, scratch_);
      fire(model_, *model_.head, scratch_, own.begin, own.end, t);
    }
  }

  void head(int part) {
    const Range own = outputs_of(*model_.head, part);
    const int first = pass_.first_logits;
    const auto row_of = [&](int t) {
      return t < first ? nullptr : pass_.logits + static_cast<int64_t>(t - first) * model_.vocab;
    };
    products_.list(*model_.head, 0, part, section_);
    products_.multiply_into(*model_.head, 0, part, model_.vocab, pass_.tokens - first, row_of);
    products_.flush();
    for (int t = first; t < pass_.tokens; ++t) bring(*model_.head, own.begin, own.end, row_of(t));
  }

  Model &model_;
  const Arithmetic &a_;
  Worker &worker_;
  const Pass &pass_;
  const Share &share_;
  int32_t *scratch_;
  uint64_t section_;
  Products<Pass> products_;
};

uint64_t run(Model &model, Worker &worker, const Pass &pass, const Share &share, uint64_t first) {
  return Walker(model, worker, pass, share, first).run();
}

}  // namespace

namespace spikegpt::engine::fixed {
namespace SPIKEGPT_ISA {

#define SPIKEGPT_QUOTE(name) #name
#define SPIKEGPT_STRING(name) SPIKEGPT_QUOTE(name)

extern const Walk walk;
const Walk walk = {SPIKEGPT_STRING(SPIKEGPT_ISA), place, run};

}  // namespace SPIKEGPT_ISA
}  // namespace spikegpt::engine::fixed
