#include <cstdio>
#include <exception>

#include "base/error.h"
#include "base/terminal.h"
#include "cli/verbs.h"
#include "ops/cpu/simd.h"

int main(int argc, char** argv) {
  using namespace bamba;
  IgnoreClosedPipes();
  CLI::App app("The whole life of the Bamba language models in one program.", "bamba");
  app.set_version_flag("--version", "bamba " BAMBA_VERSION);
  app.require_subcommand(1);
  cli::AddConvert(app);
  cli::AddTokenize(app);
  try {
    cpu::ChooseSimd();
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  } catch (const UsageError& e) {
    std::fprintf(stderr, "bamba: %s\n", e.what());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bamba: %s\n", e.what());
    return 1;
  }
}
