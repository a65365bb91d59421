#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/mapped_file.h"
#include "base/terminal.h"
#include "base/units.h"
#include "cli/default_model.h"
#include "cli/verbs.h"
#include "text/tokenizer.h"
#include "text/vectors.h"

namespace bamba::cli {
namespace {

constexpr size_t kFlushBytes = 1 << 20;

struct Request {
  std::string tokenizer;
  std::vector<std::string> texts, files, vectors;
  bool decode = false, count = false, json = false, bench = false, no_bos = false, no_special = false, skip_special = false;
};

// Standard output in large pieces.
class Output {
 public:
  void Append(std::string_view text) {
    buffer_ += text;
    if (buffer_.size() >= kFlushBytes) Flush();
  }
  void Flush() {
    WriteAll(kStandardOutput, buffer_);
    buffer_.clear();
  }

 private:
  std::string buffer_;
};

std::string Quoted(std::string_view text) { return boost::json::serialize(boost::json::string(text)); }

// Calls visit(name, text) for each text of the request, one in memory at a time; the name is empty for a text of the command line.
template <typename Visit>
void ForEachText(const Request& request, Visit visit) {
  for (const std::string& text : request.texts) visit(std::string(), text);
  for (const std::string& file : request.files) visit(file == "-" ? "standard input" : file, ReadFile(file));
  if (request.texts.empty() && request.files.empty()) visit("standard input", ReadFile("-"));
}

void AppendIds(const std::vector<int32_t>& ids, char separator, Output& out) {
  char digits[16];
  for (size_t i = 0; i < ids.size(); ++i) {
    char* end = digits;
    if (i > 0) *end++ = separator;
    end = std::to_chars(end, std::end(digits), ids[i]).ptr;
    out.Append({digits, static_cast<size_t>(end - digits)});
  }
}

void Encode(const Request& request, const Tokenizer& tokenizer) {
  const EncodeOptions options{.add_special = !request.no_bos, .parse_special = !request.no_special};
  const bool several = request.texts.size() + request.files.size() > 1;
  size_t total = 0;
  Output out;
  ForEachText(request, [&](const std::string& name, std::string_view text) {
    std::vector<int32_t> ids = tokenizer.Encode(text, options);
    total += ids.size();
    if (request.json) {
      out.Append(name.empty() ? "{" : fmt::format("{{\"file\":{},", Quoted(name)));
      out.Append(fmt::format("\"bytes\":{},\"count\":{}", text.size(), ids.size()));
      if (!request.count) {
        out.Append(",\"ids\":[");
        AppendIds(ids, ',', out);
        out.Append("]");
      }
      out.Append("}");
    } else if (request.count) {
      out.Append(name.empty() || !several ? fmt::format("{}", ids.size()) : fmt::format("{:>12} {}", ids.size(), name));
    } else {
      AppendIds(ids, ' ', out);
    }
    out.Append("\n");
  });
  if (request.count && !request.json && request.files.size() > 1) out.Append(fmt::format("{:>12} total\n", total));
  out.Flush();
}

// Numbers between anything that lists are written with: space, commas, brackets.
template <typename Visit>
void ForEachId(std::string_view list, const std::string& name, const Tokenizer& tokenizer, Visit visit) {
  const std::string where = name.empty() ? "the ids given" : name;
  for (const char *p = list.data(), *end = p + list.size(); p != end;) {
    if (std::string_view(" \t\r\n,[]").find(*p) != std::string_view::npos) {
      ++p;
      continue;
    }
    int32_t id = -1;
    auto [rest, error] = std::from_chars(p, end, id);
    if (error == std::errc::invalid_argument)
      throw Error("{}: found {}, expected token ids", where, Quoted(std::string_view(p, std::min<size_t>(end - p, 12))));
    if (error != std::errc() || id < 0 || id >= tokenizer.vocab_size())
      throw Error("{}: found id {}, expected one of 0 … {}, the tokenizer's vocabulary", where, std::string_view(p, rest - p), tokenizer.vocab_size() - 1);
    visit(id);
    p = rest;
  }
}

void Decode(const Request& request, const Tokenizer& tokenizer) {
  Output out;
  StreamDecoder decoder(tokenizer, request.skip_special);
  std::string text;  // with --json, which is one object
  auto emit = [&](std::string_view part) { request.json ? void(text += part) : out.Append(part); };
  ForEachText(request, [&](const std::string& name, std::string_view list) { ForEachId(list, name, tokenizer, [&](int32_t id) { emit(decoder.Push(id)); }); });
  emit(decoder.Finish());
  if (request.json) out.Append(fmt::format("{{\"text\":{}}}", Quoted(text)));
  if (request.json || IsTerminal(kStandardOutput)) out.Append("\n");
  out.Flush();
}

void Check(const Request& request, const Tokenizer& tokenizer) {
  Output out;
  int64_t fields = 0, failed = 0;
  for (const std::string& path : request.vectors) {
    VectorReport report = CheckVectors(tokenizer, path);
    for (const std::string& line : report.first_failures) out.Append(line + "\n");
    if (report.failed > static_cast<int64_t>(report.first_failures.size())) out.Append("…\n");
    out.Append(fmt::format("{}: {} cases, {} fields, {} failures\n", path, report.cases, report.fields, report.failed));
    fields += report.fields, failed += report.failed;
  }
  out.Flush();
  if (failed > 0) throw Error("{}: {} of {} fields differ from what was recorded", request.tokenizer, failed, fields);
}

// One pass over each text, nothing warmed up.
void Bench(const Request& request, const Tokenizer& tokenizer, double load_seconds) {
  WriteAll(kStandardOutput, fmt::format("load {:.1f} ms\n", load_seconds * 1e3));
  ForEachText(request, [&](const std::string& name, std::string_view text) {
    auto start = std::chrono::steady_clock::now();
    size_t tokens = tokenizer.Encode(text).size();
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double size = static_cast<double>(text.size());
    WriteAll(kStandardOutput, fmt::format("{:7.1f} MB/s  {} bytes, {} tokens, {:.2f} bytes/token  {}\n", size / 1e6 / seconds, Thousands(text.size()),
                                          Thousands(tokens), size / static_cast<double>(tokens), name.empty() ? "text" : name));
  });
}

void Tokenize(Request request) {
  if (!request.vectors.empty() && !(request.texts.empty() && request.files.empty()))
    throw UsageError("tokenize: --check takes its texts from the vectors; drop TEXT and -f");
  if (!request.texts.empty() && !request.files.empty()) throw UsageError("tokenize: TEXT and -f together; give one of them");
  if (request.tokenizer.empty()) request.tokenizer = DefaultModel();
  auto start = std::chrono::steady_clock::now();
  Tokenizer tokenizer = Tokenizer::Load(request.tokenizer);
  double load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!request.vectors.empty()) return Check(request, tokenizer);
  if (request.bench) return Bench(request, tokenizer, load_seconds);
  request.decode ? Decode(request, tokenizer) : Encode(request, tokenizer);
}

}  // namespace

void AddTokenize(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("tokenize", "Text to token ids and back");
  auto request = std::make_shared<Request>();
  verb->add_option("TEXT", request->texts, "Each is a text of its own; with none, and no -f, standard input is one");
  verb->add_option("--tokenizer", request->tokenizer, "A tokenizer.json, or a directory that holds one (default: that of the model that comes with bamba)")
      ->type_name("FILE");
  verb->add_option("-f,--file", request->files, "Files to read, each one text; - is standard input")->type_name("FILE");
  auto* decode = verb->add_flag("--decode", request->decode, "The texts are token ids; write what they stand for");
  auto* count = verb->add_flag("--count", request->count, "Write how many tokens there are, of each file and in total");
  auto* json = verb->add_flag("--json", request->json, "Write one JSON object a text");
  auto* no_bos = verb->add_flag("--no-bos", request->no_bos, "Do not put the tokenizer's template (such as its begin-of-text token) around a text");
  auto* no_special = verb->add_flag("--no-special", request->no_special, "Strings of special tokens in a text are text");
  auto* skip_special = verb->add_flag("--skip-special", request->skip_special, "With --decode: leave special tokens out");
  auto* check = verb->add_option("--check", request->vectors, "Compare with recorded cases (.jsonl); any difference is exit code 1")->type_name("FILE");
  auto* bench = verb->add_flag("--bench", request->bench, "Write how fast the texts are encoded, in one pass each");
  decode->excludes(count, no_bos, no_special);
  skip_special->needs(decode);
  check->excludes(decode, count, json, no_bos, no_special);
  bench->excludes(decode, count, json, no_bos, no_special, check);
  verb->footer(
      "examples:\n"
      "  bamba tokenize \"Once upon a time\"                      ids, the begin-of-text token first\n"
      "  bamba tokenize --tokenizer MODEL_DIR --count -f *.txt  tokens of each file and in total\n"
      "  bamba tokenize --no-bos < in.txt > ids.txt             and back:\n"
      "  bamba tokenize --decode < ids.txt > out.txt\n"
      "  bamba tokenize --tokenizer T.json --bench -f big.txt   speed on this machine");
  verb->callback([request] { Tokenize(*request); });
}

}  // namespace bamba::cli
