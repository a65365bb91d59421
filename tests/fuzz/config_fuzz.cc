// Any bytes as a config.json: refused with an Error, or a config that both forms can say again or refuse, and whose parameters can be counted.
#include "base/check.h"
#include "base/error.h"
#include "io/config_file.h"
#include "model/params.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace bamba;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const Config config = ParseConfig(text, "input").config;
    CHECK(ParameterCount(config) > 0);
    for (CheckpointForm form : {CheckpointForm::kHuggingFace, CheckpointForm::kMambaSsm}) {
      std::string written;
      try {
        written = FormatConfig(config, form, Dtype::kF32, "output");
      } catch (const Error&) {
        continue;  // no place in that form
      }
      CHECK_EQ(ParameterCount(ParseConfig(written, "output").config), ParameterCount(config));
    }
  } catch (const Error&) {
  }
  try {
    Config config;
    ParseGenerationConfig(text, "input", config);
  } catch (const Error&) {
  }
  return 0;
}
