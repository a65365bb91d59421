#include "base/error.h"
#include "cli/verbs.h"

namespace bamba::cli {

void AddTokenize(CLI::App& app) {
  app.add_subcommand("tokenize", "Text to token ids and back")->callback([] { throw Error("tokenize is under construction"); });
}

}  // namespace bamba::cli
