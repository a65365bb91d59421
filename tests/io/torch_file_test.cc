#include "io/torch_file.h"

#include <cstring>

#include "io/pickle.h"
#include "io/zip.h"
#include "tests/support/files.h"

namespace bamba {
namespace {

using testing::HasSubstr;
using namespace std::string_literals;

std::vector<PickledTensor> Parse(const std::string& pickle) { return ParsePickle(pickle, "x.bin"); }
std::string PickleMessage(const std::string& pickle) {
  return ErrorOf([&] { Parse(pickle); });
}

// The archive of a pickle and storages 0, 1, ….
std::string Archive(const std::string& pickle, const std::vector<std::string>& storages, const std::string& byteorder = "little") {
  TemporaryDirectory d;
  ZipWriter zip(d / "x.bin");
  zip.Add("x/data.pkl", pickle);
  zip.Add("x/byteorder", byteorder);
  for (size_t i = 0; i < storages.size(); i++) zip.Add("x/data/" + std::to_string(i), storages[i]);
  zip.Commit();
  return ReadFile(d / "x.bin");
}

std::string FileMessage(const std::string& file) {
  return ErrorOf([&] { ParseTorchFile(file, "x.bin"); });
}

PickledTensor Floats(const std::string& name, std::vector<int64_t> shape, std::vector<int64_t> stride, int64_t elements, int64_t offset = 0) {
  return {.name = name, .dtype = "F32", .storage = "0", .storage_elements = elements, .offset = offset, .shape = std::move(shape), .stride = std::move(stride)};
}

TEST(Pickle, WrittenPicklesComeBack) {
  const auto back =
      Parse(FormatPickle({Floats("a", {2, 3}, {3, 1}, int64_t{1} << 40, 7), {.name = "ü", .dtype = "BF16", .storage = "k", .storage_elements = 1}}));
  ASSERT_EQ(back.size(), 2u);
  EXPECT_EQ(back[0].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(back[0].stride, (std::vector<int64_t>{3, 1}));
  EXPECT_EQ(back[0].storage_elements, int64_t{1} << 40);
  EXPECT_EQ(back[0].offset, 7);
  EXPECT_EQ(back[1].name, "ü");
  EXPECT_EQ(back[1].dtype, "BF16");
  EXPECT_TRUE(back[1].shape.empty());
}

// What torch.save emits for {"step": 5, "model_state": {"w": …}, "loss": 1.5}: memoised strings, BUILD of _metadata, and other values beside the weights.
TEST(Pickle, ReadsTheWrapperOfFmsFsdp) {
  const std::string text = [](const std::string& s) { return "X"s + static_cast<char>(s.size()) + "\0\0\0"s + s; }("step");
  const auto word = [](const std::string& s) { return "X"s + static_cast<char>(s.size()) + "\0\0\0"s + s; };
  const std::string tensor = "ctorch._utils\n_rebuild_tensor_v2\nq\x05((" + word("storage") + "ctorch\nHalfStorage\nq\x06" + word("0") + word("cuda:0") +
                             "K\x06tq\x07QK\x00K\x02K\x03\x86K\x03K\x01\x86\x89"s + "ccollections\nOrderedDict\n)Rtq\x08R";
  const std::string state = "ccollections\nOrderedDict\nq\x02)Rq\x03(" + word("w") + tensor + "u}" + word("_metadata") + "h\x02)R" + "sb";
  const std::string pickle = "\x80\x02}q\x01(" + word("step") + "K\x05" + word("model_state") + state + word("loss") + "G\x3f\xf8\0\0\0\0\0\0"s + "u.";
  const auto tensors = Parse(pickle);
  ASSERT_EQ(tensors.size(), 1u);
  EXPECT_EQ(tensors[0].name, "w");
  EXPECT_EQ(tensors[0].dtype, "F16");
  EXPECT_EQ(tensors[0].shape, (std::vector<int64_t>{2, 3}));
}

TEST(Pickle, ExecutesNothing) {
  EXPECT_THAT(PickleMessage("\x80\x02"
                            "cposix\nsystem\nX\x02\0\0\0ls\x85R."s),
              HasSubstr("asks for posix.system, which bamba does not execute"));
  EXPECT_THAT(PickleMessage("\x80\x02"
                            "cbuiltins\neval\n."),
              HasSubstr("builtins.eval"));
  EXPECT_THAT(PickleMessage("\x80\x02"
                            "ctorch\nload\n."),
              HasSubstr("torch.load"));
  EXPECT_THAT(PickleMessage("\x80\x02"
                            "c\x1b[2J\nx\n."),
              HasSubstr("?[2J.x"));  // no terminal sequences in messages
}

TEST(Pickle, RefusesMalformedOnes) {
  const std::string one = FormatPickle({Floats("a", {2}, {1}, 2)});
  ASSERT_NO_THROW(Parse(one));
  for (size_t n = 0; n < one.size(); n++) EXPECT_THAT(PickleMessage(one.substr(0, n)), HasSubstr("ends early")) << n;
  struct {
    std::string pickle;
    const char* message;
  } const cases[] = {
      {"\x80\x04.", "protocol 4"},
      {"\x80\x02.", "stack is empty"},
      {"\x80\x02(.", "stack is empty"},
      {"\x80\x02N.", "no state dict"},
      {"\x80\x02}.", "no tensors"},
      {"\x80\x02}h\x07s.", "memo that was never set"},
      {"\x80\x02t.", "a mark is missing"},
      {"\x80\x02}(Nu.", "a key without a value"},
      {"\x80\x02NNs.", "stack is empty"},
      {"\x80\x02NNNs.", "another kind"},
      {"\x80\x02NQ.", "no storage"},
      {"\x80\x02NNR.", "something else than a function"},
      {"\x80\x02"
       "ccollections\nOrderedDict\nN\x85R.",
       "other arguments"},
      {"\x80\x02"
       "ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
       "impossible description"},
      {"\x80\x02\x8a\x09"
       "123456789.",
       "more than 64 bits"},
      {"\x80\x02\x93.", "opcode 0x93"},
      {"\x80\x02" + std::string(size_t{1} << 23, ']'), "too many values"},
      {"\x80\x02]q\x01h\x01"
       "a.",
       "no state dict"},  // a list that holds itself
  };
  for (const auto& c : cases) EXPECT_THAT(PickleMessage(c.pickle), HasSubstr(c.message));
}

TEST(TorchFile, WrittenFilesComeBack) {
  TemporaryDirectory d;
  const std::vector<float> numbers{1, 2, 3, 4, 5, 6};
  TorchWriter writer(d / "x.bin",
                     {{"a", Dtype::kF32, {2, 3}, ""}, {"tied", Dtype::kF32, {2, 3}, "a"}, {"empty", Dtype::kF32, {0}, ""}, {"b", Dtype::kBf16, {1}, ""}});
  writer.Write(numbers.data(), 8);
  writer.Write(numbers.data() + 2, 16);
  writer.Write(numbers.data(), 2);
  EXPECT_FALSE(std::filesystem::exists(d / "x.bin"));
  writer.Commit();
  const std::string file = ReadFile(d / "x.bin");
  const auto tensors = ParseTorchFile(file, "x.bin");
  ASSERT_EQ(tensors.size(), 4u);
  EXPECT_EQ(0, std::memcmp(tensors[0].tensor.data(), numbers.data(), 24));
  EXPECT_EQ(tensors[0].tensor.data(), tensors[1].tensor.data());
  EXPECT_EQ((static_cast<const char*>(tensors[0].tensor.data()) - file.data()) % 64, 0);
  EXPECT_EQ(tensors[2].bytes, 0u);
  EXPECT_EQ(tensors[3].dtype, "BF16");
}

TEST(TorchFile, RefusesTensorsThatTheirStorageCannotHold) {
  const std::string eight(8, '\0');
  EXPECT_NO_THROW(ParseTorchFile(Archive(FormatPickle({Floats("a", {1}, {1}, 2, 1)}), {eight}), "x.bin"));
  EXPECT_NO_THROW(ParseTorchFile(Archive(FormatPickle({Floats("a", {1, 2}, {77, 1}, 2)}), {eight}), "x.bin"));  // the stride of one row is never used
  struct {
    PickledTensor tensor;
    const char* message;
  } const cases[] = {
      {Floats("a", {3}, {1}, 2), "reaches past"},
      {Floats("a", {2}, {1}, 2, 1), "reaches past"},
      {Floats("a", {2}, {1}, 2, int64_t{1} << 60), "reaches past"},
      {Floats("a", {2}, {1}, 2, int64_t{1} << 62), "impossible shape"},
      {Floats("a", {int64_t{1} << 31, int64_t{1} << 31}, {int64_t{1} << 31, 1}, 2), "impossible shape"},
      {Floats("a", {2, 1}, {1, 2}, 3), "its storage has 8 bytes; expected 12"},
      {Floats("a", {1, 2}, {1, 2}, 2), "not contiguous"},
      {Floats("a", {2, 2}, {1, 2}, 2), "not contiguous"},
      {Floats("a", {2}, {0}, 2), "not contiguous"},
      {Floats("a\nb", {2}, {1}, 2), "control characters"},
  };
  for (const auto& c : cases) EXPECT_THAT(FileMessage(Archive(FormatPickle({c.tensor}), {eight})), HasSubstr(c.message)) << ShapeString(c.tensor.shape);
  EXPECT_THAT(FileMessage(Archive(FormatPickle({Floats("a", {2}, {1}, 2)}), {})), HasSubstr("needs storage '0'"));
  EXPECT_THAT(FileMessage(Archive(FormatPickle({Floats("a", {2}, {1}, 2)}), {eight}, "big")), HasSubstr("big-endian"));
}

TEST(TorchFile, RefusesOtherFiles) {
  EXPECT_THAT(FileMessage(""), HasSubstr("too short"));
  EXPECT_THAT(FileMessage(std::string(1000, 'x')), HasSubstr("no central directory"));
  EXPECT_THAT(FileMessage("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."), HasSubstr("before PyTorch 1.6"));
  TemporaryDirectory d;
  ZipWriter zip(d / "x.zip");
  zip.Add("readme", "text");
  zip.Commit();
  EXPECT_THAT(FileMessage(ReadFile(d / "x.zip")), HasSubstr("no data.pkl"));
}

// Every cut is refused; every changed byte is refused or leaves views inside of the file.
TEST(TorchFile, SurvivesEveryTruncationAndMutation) {
  const std::string file = Archive(FormatPickle({Floats("a", {2}, {1}, 2)}), {std::string(8, '\0')});
  for (size_t n = 0; n < file.size(); n++) EXPECT_THROW(ParseTorchFile(std::string_view(file).substr(0, n), "x"), Error) << n;
  for (size_t i = 0; i < file.size(); i++) {
    for (char c : {'\0', '\1', '\x7f', '\xff', '('}) {
      std::string changed = file;
      changed[i] = c;
      try {
        for (const StoredTensor& t : ParseTorchFile(changed, "x")) {
          const char* begin = static_cast<const char*>(t.tensor.data());
          EXPECT_TRUE(!t.tensor || (begin >= changed.data() && begin + t.tensor.bytes() <= changed.data() + changed.size()));
        }
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace
}  // namespace bamba
