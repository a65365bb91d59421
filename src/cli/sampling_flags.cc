#include "cli/sampling_flags.h"

#include <limits>
#include <random>
#include <utility>

#include "base/error.h"
#include "base/terminal.h"
#include "cli/values.h"

namespace bamba::cli {
namespace {

constexpr const char* kGroup = "How tokens are chosen";

// A message about a setting, which it begins with, about its flag.
std::string FlagOf(const std::string& message) {
  constexpr std::pair<std::string_view, std::string_view> kFlags[] = {{"temperature", "--temperature"},
                                                                      {"top_k", "--top-k"},
                                                                      {"top_p", "--top-p"},
                                                                      {"min_p", "--min-p"},
                                                                      {"typical_p", "--typical"},
                                                                      {"repetition_penalty", "--repeat-penalty"},
                                                                      {"presence_penalty", "--presence-penalty"},
                                                                      {"frequency_penalty", "--frequency-penalty"},
                                                                      {"logit_bias", "--logit-bias"}};
  const std::string_view name = std::string_view(message).substr(0, message.find(' '));
  for (const auto& [setting, flag] : kFlags)
    if (name == setting) return std::string(flag) + message.substr(name.size());
  return message;
}

}  // namespace

std::pair<int32_t, double> ParseLogitBias(std::string_view text) {
  const size_t at = text.find('=');
  int32_t id = 0;
  double value = 0;
  if (at == std::string_view::npos || !FromChars(text.substr(0, at), id) || !FromChars(text.substr(at + 1), value))
    throw UsageError("--logit-bias is '{}'; expected ID=VALUE, such as 42=-5, or 42=-inf for a token that is never chosen (`bamba tokenize` shows ids)", text);
  return {id, value};
}

void SamplingFlags::AddTo(CLI::App& verb) {
  const auto number = [&](const char* names, auto& value, const char* help, const char* type) {
    verb.add_option(names, value, help)->transform(AnyNumber<std::decay_t<decltype(value)>>())->type_name(type)->capture_default_str()->group(kGroup);
  };
  const auto list = [&](const char* names, auto& values, const char* help, const char* type) {
    return verb.add_option(names, values, help)->type_name(type)->allow_extra_args(false)->take_all()->group(kGroup);
  };
  number("--temperature,--temp", sampling_.temperature, "Chance: 0 always takes the likeliest token", "X");
  verb.add_flag("--greedy", greedy_, "The same as --temperature 0")->group(kGroup);
  number("--top-k", sampling_.top_k, "Choose among the K likeliest tokens; 0: all", "K");
  number("--top-p", sampling_.top_p, "Choose among the likeliest tokens that make up this probability", "P");
  number("--min-p", sampling_.min_p, "Choose among tokens of at least P times the likeliest one's probability", "P");
  number("--typical", sampling_.typical_p, "Choose among the tokens, up to this probability, whose surprise is nearest to the average one", "P");
  number("--repeat-penalty", sampling_.repetition_penalty,
         "Divide the positive logits of tokens that came before, in the prompt too, and multiply the negative ones; 1: none", "X");
  number("--presence-penalty", sampling_.presence_penalty, "Subtract this from the logits of tokens that were chosen before", "X");
  number("--frequency-penalty", sampling_.frequency_penalty, "The same, once for each time", "X");
  list("--logit-bias", logit_bias_, "Add VALUE, -100 to 100, to the logit of a token; -inf: never choose it; may be given several times", "ID=VALUE");
  verb.add_option("--seed", seed_, "Of the choices: the same seed writes the same text (default: a new one each time, shown below the text)")
      ->transform(Between(uint64_t{0}, std::numeric_limits<uint64_t>::max()))
      ->type_name("N")
      ->group(kGroup);

  list("--stop", stop_, "End before this text (with --ids before these digits, as they are written); may be given several times", "TEXT");
  list("--stop-token", stop_tokens_, "End before this token's id; may be given several times", "ID")->transform(AnyNumber<int32_t>());
  verb.add_option("--min-tokens", min_tokens_, "No end, by --stop or by the model, before so many tokens")
      ->transform(Between(int64_t{0}, int64_t{1} << 30))
      ->type_name("N")
      ->group(kGroup);
  verb.add_flag("--ignore-eos", ignore_eos_, "Write on after a token that ends a text")->group(kGroup);
}

Request SamplingFlags::Read(int64_t tokens) const {
  if (min_tokens_ > tokens) throw UsageError("--min-tokens {} is more than -n {}", min_tokens_, tokens);
  Sampling sampling = sampling_;
  if (greedy_) sampling.temperature = 0;
  sampling.seed = seed_ ? *seed_ : std::random_device{}();
  for (const std::string& bias : logit_bias_) sampling.logit_bias.push_back(ParseLogitBias(bias));
  for (const std::string& stop : stop_)
    if (stop.empty()) throw UsageError("--stop is empty; give the text to end before");
  try {
    sampling.Validate();
  } catch (const Error& e) {
    throw UsageError("{}", FlagOf(e.what()));
  }
  return {.max_tokens = tokens,
          .sampling = std::move(sampling),
          .stop = stop_,
          .stop_tokens = stop_tokens_,
          .min_tokens = min_tokens_,
          .ignore_eos = ignore_eos_,
          .interrupted = [] { return InterruptSignal() != 0; }};
}

}  // namespace bamba::cli
