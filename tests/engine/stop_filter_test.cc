#include "engine/stop_filter.h"

#include <gtest/gtest.h>

#include <random>

namespace bamba {
namespace {

// What comes through when the text arrives in pieces of the sizes that `next` gives.
template <typename Next>
std::pair<std::string, bool> Filtered(const std::vector<std::string>& stops, const std::string& text, const Next& next) {
  StopFilter filter(stops);
  std::string shown;
  for (size_t at = 0; at < text.size();) {
    const size_t n = std::min<size_t>(next(), text.size() - at);
    shown += filter.Push(std::string_view(text).substr(at, n));
    at += n;
  }
  return {shown + filter.Finish(), filter.stopped()};
}

std::pair<std::string, bool> Whole(const std::vector<std::string>& stops, const std::string& text) {
  return Filtered(stops, text, [&] { return text.size(); });
}

TEST(StopFilter, CutsAtTheStop) {
  EXPECT_EQ(Whole({"END"}, "some text END and more"), std::pair(std::string("some text "), true));
  EXPECT_EQ(Whole({"END"}, "some text EN"), std::pair(std::string("some text EN"), false));
  EXPECT_EQ(Whole({}, "text"), std::pair(std::string("text"), false));
  EXPECT_EQ(Whole({""}, "text"), std::pair(std::string("text"), false));
  EXPECT_EQ(Whole({"abc", "b"}, "abc"), std::pair(std::string("a"), true));  // "b" is complete first
  EXPECT_EQ(Whole({"bc", "abc"}, "xabc"), std::pair(std::string("x"), true));
  EXPECT_EQ(Whole({"aab"}, "aaab"), std::pair(std::string("a"), true));
}

TEST(StopFilter, HoldsOnlyWhatMayBecomeAStop) {
  StopFilter filter({"\n\n"});
  EXPECT_EQ(filter.Push("line"), "line");
  EXPECT_EQ(filter.Push(" end\n"), " end");
  EXPECT_EQ(filter.Push("next"), "\nnext");
  EXPECT_EQ(filter.Push("\n"), "");
  EXPECT_EQ(filter.Push("\nunseen"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.Push("unseen"), "");
  EXPECT_EQ(filter.Finish(), "");
}

TEST(StopFilter, PiecesDoNotMatter) {
  std::mt19937_64 random(1);
  const auto word = [&](size_t n) {
    std::string s;
    for (size_t i = 0; i < n; i++) s += static_cast<char>('a' + random() % 2);
    return s;
  };
  for (int trial = 0; trial < 3000; trial++) {
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; i--) stops.push_back(word(1 + random() % 6));
    const std::string text = word(random() % 40);
    const auto one_by_one = Filtered(stops, text, [] { return 1; });
    EXPECT_EQ(Whole(stops, text), one_by_one) << text;
    EXPECT_EQ(Filtered(stops, text, [&] { return 1 + random() % 5; }), one_by_one) << text;
    for (const auto& stop : stops) EXPECT_EQ(one_by_one.first.find(stop), std::string::npos);
  }
}

}  // namespace
}  // namespace bamba
