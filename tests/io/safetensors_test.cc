#include "io/safetensors.h"

#include <cstring>

#include "tests/support/files.h"

namespace bamba {
namespace {

using testing::HasSubstr;

// A file of this header, with `data_bytes` of data after it.
std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), sizeof size);
  return file + header + std::string(data_bytes, '\1');
}

// The same, the header padded so that the data begins at a multiple of 8.
std::string Aligned(std::string header, size_t data_bytes) {
  header.append((8 - header.size() % 8) % 8, ' ');
  return File(header, data_bytes);
}

std::string One(const std::string& entry, size_t data_bytes) { return Aligned("{\"t\":" + entry + "}", data_bytes); }

std::string Message(const std::string& file) {
  return ErrorOf([&] { ParseSafetensors(file, "x.safetensors"); });
}

TEST(Safetensors, WrittenFilesComeBack) {
  TemporaryDirectory directory;
  const std::string path = directory / "x.safetensors";
  const std::vector<float> floats{1, -2, 3};
  const std::vector<int64_t> ints{7, -100};
  const Bf16 half(1.5f);
  SafetensorsWriter writer(path, {{"bf", Dtype::kBf16, {1, 1}}, {"f", Dtype::kF32, {3}}, {"\"i\"", Dtype::kI64, {2}}, {"none", Dtype::kF32, {0, 4}}},
                           {{"k", "v"}});
  for (const auto& e : writer.entries()) {
    if (e.name == "bf") writer.Write(&half, sizeof half);
    if (e.name == "f") writer.Write(floats.data(), 4), writer.Write(floats.data() + 1, 8);
    if (e.name == "\"i\"") writer.Write(ints.data(), 16);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.Commit();

  SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), 4u);
  EXPECT_EQ(file.metadata().at("k"), "v");
  EXPECT_EQ(0, std::memcmp(file.Get("f", Dtype::kF32).data(), floats.data(), 12));
  EXPECT_EQ(0, std::memcmp(file.Get("\"i\"", Dtype::kI64).data(), ints.data(), 16));
  EXPECT_EQ(0, std::memcmp(file.Get("bf", Dtype::kBf16).data(), &half, 2));
  EXPECT_EQ(file.Get("bf", Dtype::kBf16).ShapeString(), "[1, 1]");
  EXPECT_EQ(file.Get("none", Dtype::kF32).size(), 0);
  EXPECT_EQ(file.Find("absent"), nullptr);
  EXPECT_THAT(ErrorOf([&] { file.Get("f", Dtype::kI64); }), HasSubstr("expected I64"));
  EXPECT_THAT(ErrorOf([&] { file.Get("absent", Dtype::kI64); }), HasSubstr(path));
}

TEST(Safetensors, ReadsWhatTransformersWrote) {
  SafetensorsFile file(DataDirectory("tiny-a") + "/goldens.safetensors");
  EXPECT_EQ(file.Get("input_ids", Dtype::kI64).ShapeString(), "[2, 77]");
  EXPECT_EQ(file.Get("logits", Dtype::kF32).ShapeString(), "[2, 77, 512]");
}

TEST(Safetensors, UnknownDtypesAndScalarsAreListed) {
  const std::string file = Aligned(R"({"a":{"dtype":"F4_NEW","shape":[3],"data_offsets":[0,2]},"s":{"dtype":"U8","shape":[],"data_offsets":[2,3]}})", 3);
  const auto content = ParseSafetensors(file, "x");
  ASSERT_EQ(content.tensors.size(), 2u);
  EXPECT_FALSE(content.tensors[0].tensor);
  EXPECT_EQ(content.tensors[1].bytes, 1u);
}

TEST(Safetensors, RefusesMalformedFiles) {
  const std::string good = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  ASSERT_NO_THROW(ParseSafetensors(One(good, 8), "x"));
  std::string huge_header = File("{}", 0);
  huge_header[7] = 0x10;  // 2^60
  struct {
    const char* why;
    std::string file;
    const char* message;
  } const files[] = {
      {"empty", "", "0 bytes long"},
      {"five bytes", "abcde", "5 bytes long"},
      {"header of 2^60 bytes", huge_header, "1152921504606846978"},
      {"header longer than the file", std::string("\x40\0\0\0\0\0\0\0{}", 10), "cut short"},
      {"no JSON", File("{\"t\": ", 0), "not valid JSON"},
      {"two values", File("{} {}", 0), "not valid JSON"},
      {"deep", File(std::string(100000, '[') + std::string(100000, ']'), 0), "not valid JSON"},
      {"bad UTF-8", File("{\"\xff\":1}", 0), "not valid JSON"},
      {"a list", File("[]", 0), "no JSON object"},
      {"entry is a number", One("3", 0), "no object"},
      {"no offsets", One(R"({"dtype":"F32","shape":[2]})", 8), "lacks dtype, shape or data_offsets"},
      {"data cut short", One(good, 7), "cut short"},
      {"data too long", One(good, 9), "holds 9 bytes of data; its header describes 8"},
      {"data without tensors", File("{}      ", 4), "describes 0"},
      {"mislabelled dtype", One(R"({"dtype":"F16","shape":[2],"data_offsets":[0,8]})", 8), "expected 4"},
      {"mislabelled shape", One(R"({"dtype":"F32","shape":[2,16384],"data_offsets":[0,8]})", 8), "its data 8 bytes; expected 131,072"},
      {"negative dimension", One(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})", 8), "shape"},
      {"fractional dimension", One(R"({"dtype":"F32","shape":[2.5],"data_offsets":[0,8]})", 8), "shape"},
      {"product overflows", One(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})", 0), "impossible shape"},
      {"overflow behind a zero", One(R"({"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,0]})", 0), "impossible shape"},
      {"dimension of 2^64", One(R"({"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]})", 8), "shape"},
      {"offsets reversed", One(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})", 8), "data_offsets"},
      {"offsets negative", One(R"({"dtype":"F32","shape":[2],"data_offsets":[-8,0]})", 8), "data_offsets"},
      {"offset of 2^63", One(R"({"dtype":"F32","shape":[2],"data_offsets":[9223372036854775800,9223372036854775808]})", 8), "data_offsets"},
      {"one offset", One(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})", 8), "data_offsets"},
      {"overlap", Aligned(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12), "overlap"},
      {"hole", Aligned(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16), "a hole"},
      {"a name twice", Aligned(R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"\u0061":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})", 0),
       "twice"},
      {"misaligned data", File(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} )", 8), "no multiple of the 4 bytes"},
      {"misaligned tensor", Aligned(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})", 5),
       "no multiple of the 4 bytes"},
      {"control characters", Aligned(R"({"a\nb":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1), "control characters"},
      {"metadata of numbers", File(R"({"__metadata__":{"a":1}})", 0), "__metadata__.a"},
  };
  for (const auto& bad : files) {
    SCOPED_TRACE(bad.why);
    EXPECT_THAT(Message(bad.file), HasSubstr(bad.message));
    EXPECT_THAT(Message(bad.file), testing::StartsWith("x.safetensors: "));
  }
}

// Every cut is refused; every changed byte is refused or leaves views inside of the file.
TEST(Safetensors, SurvivesEveryTruncationAndMutation) {
  const std::string file = Aligned(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}})", 10);
  for (size_t n = 0; n < file.size(); n++) EXPECT_THROW(ParseSafetensors(std::string_view(file).substr(0, n), "x"), Error) << n;
  for (size_t i = 0; i < file.size(); i++) {
    for (char c : {'\0', '0', '9', '"', '{', '\x80'}) {
      std::string changed = file;
      changed[i] = c;
      try {
        for (const StoredTensor& t : ParseSafetensors(changed, "x").tensors) {
          if (!t.tensor) continue;
          const char* begin = static_cast<const char*>(t.tensor.data());
          EXPECT_TRUE(begin >= changed.data() && begin + t.tensor.bytes() <= changed.data() + changed.size());
        }
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace
}  // namespace bamba
