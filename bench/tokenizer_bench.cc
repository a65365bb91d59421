// How fast a tokenizer reads, one thread, one pass over each text with nothing warmed up:
//   tokenizer_bench TOKENIZER.json|DIR [PROSE.txt…]
// The gates: prose >= 100 MB/s with Llama-3's vocabulary over >= 50 MB, other kinds >= 20, Llama-3's file loaded in < 150 ms.
#include <fmt/format.h>

#include <cmath>
#include <ctime>
#include <functional>
#include <optional>
#include <random>

#include "base/error.h"
#include "base/mapped_file.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace bamba {
namespace {

constexpr size_t kBytes = 20'000'000;

// Of this thread's processor time: what others do on the machine counts little.
double Seconds(const std::function<void()>& work) {
  auto now = [] { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; };
  double start = now();
  work();
  return now() - start;
}

// Zipf's law: the k-th most frequent of n has about 1/k of the first one's share.
size_t ZipfIndex(std::mt19937_64& random, size_t n) {
  return static_cast<size_t>(std::pow(static_cast<double>(n), std::uniform_real_distribution<>(0, 1)(random))) - 1;
}

std::string Identifier(std::mt19937_64& random) {
  static const char* const kSyllables[] = {"get", "set", "num", "ptr", "size", "data", "buf", "node", "list",
                                           "map", "key", "val", "str", "len",  "idx",  "ctx", "tmp",  "src"};
  std::string name;
  for (size_t parts = 1 + random() % 3, i = 0; i < parts; ++i) name += (i ? "_" : "") + std::string(kSyllables[random() % std::size(kSyllables)]);
  return random() % 4 ? name : name + std::to_string(random() % 100);
}

std::string Code() {
  std::mt19937_64 random(1);
  std::vector<std::string> names;
  for (int i = 0; i < 20000; ++i) names.push_back(Identifier(random));
  auto name = [&] { return names[ZipfIndex(random, names.size())]; };
  std::string text;
  while (text.size() < kBytes) {
    std::string indent(2 * (1 + random() % 5), ' ');
    switch (random() % 5) {
      case 0: text += fmt::format("{}for (int {} = 0; {} < {}; ++{}) {{\n", indent, name(), name(), random() % 10000, name()); break;
      case 1: text += fmt::format("{}if ({}->{} != nullptr) return {}({}, 0x{:x});\n", indent, name(), name(), name(), name(), random() % 65536); break;
      case 2: text += fmt::format("{}{}[{}] = {} * ({} + {});\n", indent, name(), name(), name(), name(), random() % 100); break;
      case 3: text += fmt::format("{}// {} is the {} of {}\n", indent, name(), name(), name()); break;
      default: text += indent.substr(2) + "}\n\n";
    }
  }
  return text;
}

std::string Chinese() {
  std::mt19937_64 random(2);
  std::string text;
  while (text.size() < kBytes) {
    for (size_t n = 4 + random() % 20; n > 0; --n) AppendUtf8(static_cast<char32_t>(0x4E00 + ZipfIndex(random, 6000) * 3 % 20900), text);
    AppendUtf8(random() % 3 ? 0xFF0C : 0x3002, text);
  }
  return text;
}

std::string RandomBytes() {
  std::mt19937_64 random(3);
  std::string text(kBytes, '\0');
  for (char& c : text) c = static_cast<char>(random());
  return text;
}

void Report(const Tokenizer& tokenizer, const char* kind, const std::string& text) {
  size_t tokens = 0;
  double seconds = Seconds([&] { tokens = tokenizer.Encode(text).size(); });
  double bytes = static_cast<double>(text.size());
  fmt::print("{:<22} {:7.1f} MB/s   {:9.1f} MB  {:5.2f} bytes/token\n", kind, bytes / 1e6 / seconds, bytes / 1e6, bytes / static_cast<double>(tokens));
}

void Run(int argc, char** argv) {
  if (argc < 2) throw Error("usage: tokenizer_bench TOKENIZER.json|DIR [PROSE.txt…]");
  std::optional<Tokenizer> tokenizer;
  double load = Seconds([&] { tokenizer.emplace(Tokenizer::Load(argv[1])); });
  fmt::print("{:<22} {:7.1f} ms     {} tokens\n", "load", load * 1e3, tokenizer->vocab_size());
  std::string prose;
  for (int i = 2; i < argc; ++i) prose += ReadFile(argv[i]);
  if (!prose.empty()) Report(*tokenizer, "prose", prose);
  Report(*tokenizer, "code", Code());
  Report(*tokenizer, "Chinese", Chinese());
  Report(*tokenizer, "random bytes", RandomBytes());
  Report(*tokenizer, "one letter", std::string(1'000'000, 'a'));
  Report(*tokenizer, "spaces", std::string(1'000'000, ' '));
}

}  // namespace
}  // namespace bamba

int main(int argc, char** argv) {
  try {
    bamba::Run(argc, argv);
  } catch (const bamba::Error& e) {
    fmt::print(stderr, "tokenizer_bench: {}\n", e.what());
    return 1;
  }
}
