#include "cli/run_report.h"

#include <fmt/format.h>

#include <boost/json.hpp>

#include "base/units.h"
#include "io/json.h"
#include "model/params.h"
#include "text/unicode.h"

namespace bamba::cli {
namespace {

namespace json = boost::json;

double Rate(int64_t n, double seconds) { return n > 0 && seconds > 0 ? static_cast<double>(n) / seconds : 0; }

std::string Lossy(std::string_view bytes) {
  std::string text;
  AppendLossy(bytes, text);
  return text;
}

// A token may be a part of a character: its bytes say more than its text.
std::string_view BytesOf(const RunReport& report, int32_t id) { return report.tokenizer ? report.tokenizer->TokenBytes(id) : std::string_view(); }

json::object JsonOf(const RunReport& report, const Logprob& entry) {
  json::object o{{"id", entry.id}, {"logprob", entry.logprob}};
  if (!report.tokenizer) return o;
  const std::string_view bytes = BytesOf(report, entry.id);
  o["token"] = Lossy(bytes);
  json::array& list = (o["bytes"] = json::array()).as_array();
  for (const char byte : bytes) list.push_back(static_cast<unsigned char>(byte));
  return o;
}

json::array JsonOf(const RunReport& report, const std::vector<TokenLogprobs>& logprobs) {
  json::array list;
  for (const TokenLogprobs& each : logprobs) {
    json::object o = JsonOf(report, each.token);
    json::array& top = (o["top"] = json::array()).as_array();
    for (const Logprob& entry : each.top) top.push_back(JsonOf(report, entry));
    list.push_back(std::move(o));
  }
  return list;
}

// On one line, with a token's ends visible.
std::string Quoted(const RunReport& report, int32_t id) {
  return report.tokenizer ? json::serialize(json::string(Lossy(BytesOf(report, id)))) : std::to_string(id);
}

}  // namespace

std::string Json(const RunReport& report, const WrittenText& written) {
  const Generation& g = written.generation;
  const auto prompt_tokens = static_cast<int64_t>(written.request.prompt.size());
  const std::string prompt = Lossy(written.prompt);
  json::object o;
  o["model"] = report.model;
  o["index"] = written.index;
  o["completion"] = written.completion;
  o["prompt"] = prompt;
  o["text"] = report.echo ? prompt + g.text : g.text;
  o["tokens"] = json::array(g.tokens.begin(), g.tokens.end());
  o["finish_reason"] = Name(g.finish);
  if (!g.error.empty()) o["error"] = g.error;
  if (written.request.top_logprobs) o["logprobs"] = JsonOf(report, g.logprobs);
  if (written.request.prompt_logprobs) {
    // Nothing comes before the first token, so nothing tells how likely it is.
    json::array all{json::object{{"id", written.request.prompt[0]}, {"logprob", nullptr}}};
    for (json::value& each : JsonOf(report, g.prompt_logprobs)) all.push_back(std::move(each));
    o["prompt_logprobs"] = std::move(all);
  }
  o["prompt_tokens"] = prompt_tokens;
  o["seed"] = written.request.sampling.seed + static_cast<uint64_t>(written.completion);
  o["load_seconds"] = report.load_seconds;
  if (report.context_seconds > 0) o["context_seconds"] = report.context_seconds;
  o["prompt_seconds"] = g.prompt_seconds;
  o["prompt_tokens_per_second"] = Rate(prompt_tokens, g.prompt_seconds);
  o["seconds"] = g.step_seconds;
  o["tokens_per_second"] = Rate(g.steps, g.step_seconds);
  return JsonLine(o) + "\n";
}

std::string LogprobTable(const RunReport& report, const WrittenText& written) {
  std::string table;
  const auto lines = [&](const std::vector<TokenLogprobs>& logprobs) {
    for (const TokenLogprobs& each : logprobs) {
      table += fmt::format("{:>12.6f}  {}", each.token.logprob, Quoted(report, each.token.id));
      for (const Logprob& entry : each.top)
        table += fmt::format("  {} {} {:.6f}", &entry == each.top.data() ? "|" : "·", Quoted(report, entry.id), entry.logprob);
      table += "\n";
    }
  };
  if (!written.request.top_logprobs) return table;
  if (written.request.prompt_logprobs) {
    table += fmt::format("{:>12}  {}\n", "-", Quoted(report, written.request.prompt[0]));
    lines(written.generation.prompt_logprobs);
  }
  lines(written.generation.logprobs);
  return table;
}

std::string ClosingLine(const RunReport& report, const RunTotals& totals, const Sampling& sampling, const Model& model, const Engine& engine) {
  std::string line = fmt::format(" {} · {} {} · loaded {}", report.model, HumanCount(static_cast<double>(ParameterCount(model.config))), DtypeName(model),
                                 HumanSeconds(report.load_seconds));
  if (report.context_seconds > 0) line += fmt::format(" (and {} for the driver)", HumanSeconds(report.context_seconds));
  line += totals.texts == 1 ? fmt::format(" · prompt {} tok{}", totals.prompt_tokens,
                                                   totals.prompt_seconds > 0 ? " " + HumanSeconds(totals.prompt_seconds) : " not all read")
                            : fmt::format(" · {} texts · prompts {} tok", totals.texts, totals.prompt_tokens);
  line += fmt::format(" · {} tok", totals.tokens);
  if (const double rate = Rate(totals.steps, totals.step_seconds); rate > 0) {
    line += fmt::format(" at {} tok/s", HumanRate(rate));
    if (totals.texts == 1) line += fmt::format(" ({}/s)", HumanBytes(rate * static_cast<double>(engine.StepWeightBytes())));
  }
  if (sampling.temperature > 0) line += fmt::format(" · seed {}", sampling.seed);
  if (totals.interrupted) line += " · interrupted";
  return line;
}

}  // namespace bamba::cli
