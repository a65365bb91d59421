#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/error.h"
#include "cli/prompts.h"
#include "cli/sampling_flags.h"
#include "tests/support/files.h"

namespace bamba::cli {
namespace {

TEST(Lines, EndsAreNoPartOfThem) {
  using Texts = std::vector<std::string>;
  EXPECT_EQ(Lines("one\ntwo\r\n\nfour"), (Texts{"one", "two", "", "four"}));
  EXPECT_EQ(Lines("one\n"), (Texts{"one"}));
  EXPECT_EQ(Lines("\n"), (Texts{""}));
  EXPECT_EQ(Lines(""), (Texts{}));
}

TEST(LogitBias, IsAnIdAndANumber) {
  EXPECT_EQ(ParseLogitBias("42=-5.5"), std::pair(42, -5.5));
  EXPECT_EQ(ParseLogitBias("0=1e1"), std::pair(0, 10.0));
  EXPECT_EQ(ParseLogitBias("7=-inf").second, -HUGE_VAL);
  for (const char* bad : {"", "5", "=3", "5=", "a=3", "5=b", "5=3x", "5x=3", "99999999999=1", "5= 3", "5:3"})
    EXPECT_THROW(ParseLogitBias(bad), UsageError) << bad;
}

template <typename Flags>
void Parse(Flags& flags, std::vector<std::string> arguments) {
  CLI::App app;
  CLI::App* verb = app.add_subcommand("verb");
  flags.AddTo(*verb);
  verb->callback([] {});
  arguments.insert(arguments.begin(), "verb");
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
}

TEST(SamplingFlags, SayWhatIsTyped) {
  SamplingFlags flags;
  Parse(flags, {"--temp",
                "0.5",
                "--top-k=7",
                "--typical",
                "0.9",
                "--presence-penalty",
                "-1.5",
                "--frequency-penalty",
                "0.25",
                "--repeat-penalty",
                "1.1",
                "--logit-bias",
                "3=-inf",
                "--logit-bias",
                "4=2",
                "--seed",
                "18446744073709551615",
                "--stop",
                "[a,b]",
                "--stop",
                " ",
                "--stop-token",
                "8",
                "--min-tokens",
                "3"});
  const Request request = flags.Read(256);
  const Sampling& sampling = request.sampling;
  EXPECT_EQ(sampling.temperature, 0.5);
  EXPECT_EQ(sampling.top_k, 7);
  EXPECT_EQ(sampling.typical_p, 0.9);
  EXPECT_EQ(sampling.presence_penalty, -1.5);
  EXPECT_EQ(sampling.frequency_penalty, 0.25);
  EXPECT_EQ(sampling.repetition_penalty, 1.1);
  EXPECT_EQ(sampling.logit_bias, (std::vector<std::pair<int32_t, double>>{{3, -HUGE_VAL}, {4, 2}}));
  EXPECT_EQ(sampling.seed, 18446744073709551615u);
  EXPECT_EQ(request.stop, (std::vector<std::string>{"[a,b]", " "}));
  EXPECT_EQ(request.stop_tokens, (std::vector<int32_t>{8}));
  EXPECT_EQ(request.min_tokens, 3);
}

TEST(SamplingFlags, RefuseNonsense) {
  for (const char* bad : {"--temp=-1", "--temp=nan", "--top-p=0", "--typical=0", "--repeat-penalty=0", "--presence-penalty=3", "--frequency-penalty=nan",
                          "--logit-bias=3=1000", "--min-p=2", "--top-k=-1"}) {
    SamplingFlags flags;
    Parse(flags, {bad});
    EXPECT_THROW(flags.Read(256), UsageError) << bad;
  }
  SamplingFlags empty_stop;
  Parse(empty_stop, {"--stop", ""});
  EXPECT_THROW(empty_stop.Read(256), UsageError);
}

TEST(PromptFlags, ComeInTheOrderOfTyping) {
  const TemporaryDirectory directory;
  const std::string file = directory / "prompts";
  WriteFile(file, "[one, 1]\ntwo\n");
  PromptFlags flags;
  CLI::App app;
  flags.AddTo(app);
  std::vector<std::string> arguments{"-p", "a", "--prompts", file, "-f", file, "--prompt=-b", "-p", "[c,d]", "-p", ""};
  std::reverse(arguments.begin(), arguments.end());
  app.parse(arguments);
  EXPECT_EQ(flags.Read(), (std::vector<std::string>{"a", "[one, 1]", "two", "[one, 1]\ntwo", "-b", "[c,d]", ""}));
}

}  // namespace
}  // namespace bamba::cli
