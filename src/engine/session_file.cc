#include "engine/session_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/executable.h"
#include "base/hash.h"
#include "base/units.h"
#include "model/params.h"
#include "ops/cpu/simd.h"

namespace bamba {
namespace {

constexpr char kMagic[8] = {'B', 'A', 'M', 'B', 'A', 'S', 'E', 'S'};
constexpr uint32_t kVersion = 2;

struct Header {
  char magic[8];
  uint32_t version, precise;  // precise: 0 or 1
  uint64_t build, model;
  char arithmetic[16];  // zeros after the name
  int64_t tokens, position, reach, image_bytes;
  uint64_t content;  // hash of all that follows the header
  uint64_t header;   // hash of all before it
};
static_assert(sizeof(Header) == 96);

uint64_t HashOf(const Header& header) {
  Hash hash;
  hash.Add(&header, offsetof(Header, header));
  return hash.value();
}

std::string NameIn(const char (&field)[16]) { return {field, strnlen(field, sizeof field)}; }

void CheckIdentity(const std::string& path, const Header& header, const SessionIdentity& identity) {
  if (header.model != identity.model)
    throw Error("{}: belongs to another model (hash {:016x}, this one has {:016x}); load the model that it was saved with", path, header.model, identity.model);
  if (header.build != identity.build)
    throw Error("{}: was saved by another build of this program, which may round differently (build {:016x}, this is {:016x}); use that one, or begin anew",
                path, header.build, identity.build);
  if (NameIn(header.arithmetic) != identity.arithmetic)
    throw Error("{}: was saved with the arithmetic {}, now it is {}; set {} on a machine that has it, or begin anew", path, NameIn(header.arithmetic),
                identity.arithmetic, NameIn(header.arithmetic).starts_with("cuda") ? "--device cuda" : "BAMBA_SIMD=" + NameIn(header.arithmetic));
  if ((header.precise != 0) != identity.precise)
    throw Error("{}: was saved {} --precise, now it is {}; {}, or begin anew", path, header.precise ? "with" : "without",
                identity.precise ? "with" : "without", header.precise ? "add it" : "leave it out");
}

bool BeginsAsSession(const MappedFile& file) { return file.size() >= sizeof kMagic && std::memcmp(file.data(), kMagic, sizeof kMagic) == 0; }

// A slip of the fingers must not cost a file that is no session.
void CheckReplaceable(const std::string& path) {
  std::error_code fault;
  if (!std::filesystem::is_regular_file(path, fault) || std::filesystem::file_size(path, fault) == 0) return;
  if (!BeginsAsSession(MappedFile(path))) throw Error("{}: is there already and no saved session; give another name, or remove it", path);
}

void HashConfig(const Config& c, Hash& hash) {
  for (BlockKind kind : c.blocks) hash.Add(Name(kind));
  for (int64_t n :
       {c.vocab, c.dim, c.mamba_heads, c.mamba_head_dim, c.mamba_state, c.mamba_groups, c.d_conv, c.heads, c.kv_heads, c.head_dim, c.rope_dims, c.ffn})
    hash.AddValue(n);
  for (double x : {c.eps, c.dt_min, c.dt_max, c.rope_theta, c.embedding_multiplier, c.residual_multiplier, c.logits_multiplier, c.attention().scale})
    hash.AddValue(x);
}

// A part of a tensor, hashed by one thread.
struct Piece {
  const char* data;
  size_t bytes;
  bool whole;  // or samples of it
};
constexpr size_t kPiece = size_t{1} << 20, kSmall = size_t{256} << 10;

uint64_t HashOf(const Piece& piece) {
  constexpr size_t kEvery = 4096, kSample = 64;
  Hash hash;
  if (piece.whole)
    hash.Add(piece.data, piece.bytes);
  else
    for (size_t i = 0; i < piece.bytes; i += kEvery) hash.Add(piece.data + i, std::min(kSample, piece.bytes - i));
  return hash.value();
}

}  // namespace

uint64_t ModelHash(const Model& model, ThreadPool& threads, size_t whole) {
  Hash hash;
  HashConfig(model.config, hash);
  Weights weights = model.weights;
  const std::vector<Param> params = Parameters(model.config, weights);
  size_t total = 0;
  for (const Param& p : params) total += p.tensor->bytes();
  std::vector<Piece> pieces;
  for (const Param& p : params) {
    hash.Add(p.name);
    hash.Add(p.tensor->ShapeString());
    hash.Add(Name(p.tensor->dtype()));
    const size_t bytes = p.tensor->bytes();
    for (size_t i = 0; i < bytes; i += kPiece)
      pieces.push_back({static_cast<const char*>(p.tensor->data()) + i, std::min(kPiece, bytes - i), total <= whole || bytes <= kSmall});
  }
  std::vector<uint64_t> hashes(pieces.size());
  threads.For(std::ssize(pieces), 1, [&](int64_t begin, int64_t end, int) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); i++) hashes[i] = HashOf(pieces[i]);
  });
  hash.Add(hashes.data(), hashes.size() * sizeof hashes[0]);
  return hash.value();
}

SessionIdentity IdentityOf(const Model& model, const Execution& execution, ThreadPool& threads) {
  const std::string program = ExecutablePath();
  if (program.empty()) throw Error("the system does not tell which file this program is, so that a session could not be told from another build's");
  const MappedFile file(program);
  Hash hash;
  hash.Add(file.data(), file.size());
  std::string arithmetic = cpu::SimdName();
  if (execution.accelerator) {
    hash.Add(execution.accelerator->name());
    arithmetic = execution.invariant ? "cuda-invariant" : "cuda";
  }
  return {.build = hash.value(), .model = ModelHash(model, threads), .arithmetic = std::move(arithmetic), .precise = execution.precise};
}

void WriteSession(const std::string& path, const SessionIdentity& identity, std::span<const int32_t> tokens, const StatePool& pool,
                  const SequenceState& sequence) {
  CheckReplaceable(path);
  const int64_t reach = pool.Reach(sequence);
  Hash content;
  content.Add(tokens.data(), tokens.size_bytes());
  pool.Save(sequence, reach, [&](const void* data, size_t bytes) { content.Add(data, bytes); });

  Header header{.version = kVersion,
                .precise = identity.precise ? 1u : 0u,
                .build = identity.build,
                .model = identity.model,
                .tokens = static_cast<int64_t>(tokens.size()),
                .position = sequence.position,
                .reach = reach,
                .image_bytes = pool.ImageBytes(sequence.position, reach),
                .content = content.value()};
  std::copy(std::begin(kMagic), std::end(kMagic), header.magic);
  CHECK_MSG(identity.arithmetic.size() < sizeof header.arithmetic, "{}", identity.arithmetic);
  identity.arithmetic.copy(header.arithmetic, sizeof header.arithmetic);
  header.header = HashOf(header);

  FileWriter file(path);
  file.Write(&header, sizeof header);
  file.Write(tokens.data(), tokens.size_bytes());
  pool.Save(sequence, reach, [&](const void* data, size_t bytes) { file.Write(data, bytes); });
  file.Commit();
}

SessionFile::SessionFile(const std::string& path, const SessionIdentity& identity, const Config& config, const StatePool& pool, int64_t context) : file_(path) {
  Header header;
  if (!BeginsAsSession(file_)) throw Error("{}: is no saved session (it does not begin with {})", path, std::string(kMagic, sizeof kMagic));
  if (file_.size() < sizeof header) throw Error("{}: is cut short: {} bytes, a session has at least {}; take another copy", path, file_.size(), sizeof header);
  std::memcpy(&header, file_.data(), sizeof header);
  if (header.version != kVersion)
    throw Error("{}: has the session format {}, this program knows {}; use the program that saved it", path, header.version, kVersion);
  if (header.header != HashOf(header)) throw Error("{}: is damaged in its header; take another copy", path);
  CheckIdentity(path, header, identity);

  // The hash vouches for the numbers against accident, not against malice.
  const auto size = static_cast<int64_t>(file_.size() - sizeof header), most_tokens = size / static_cast<int64_t>(sizeof(int32_t));
  const bool sound = header.tokens >= 0 && header.position >= 0 && header.position <= header.tokens && header.reach >= 0 && header.reach <= header.position &&
                     header.position - header.reach <= kSsdChunk;
  if (!sound) throw Error("{}: is damaged: {} tokens, {} read, from {} on in reach; take another copy", path, header.tokens, header.position, header.reach);
  const bool whole = header.tokens <= most_tokens && header.image_bytes == size - header.tokens * static_cast<int64_t>(sizeof(int32_t)) &&
                     header.image_bytes == pool.ImageBytes(header.position, header.reach);
  if (!whole)
    throw Error("{}: is cut short or damaged: {} tokens and a state of {} bytes announced, {} bytes there; take another copy", path, header.tokens,
                header.image_bytes, size);
  if (config.Count(BlockKind::kAttention) > 0 && header.position > context)  // the last token needs no room until it is read
    throw Error("{}: has {} tokens, the context has room for {}; raise --context", path, Thousands(header.tokens), Thousands(context));

  const char* content = file_.data() + sizeof header;
  Hash hash;
  hash.Add(content, static_cast<size_t>(size));
  if (hash.value() != header.content) throw Error("{}: is damaged: its content is not what was saved; take another copy", path);
  tokens_ = {reinterpret_cast<const int32_t*>(content), static_cast<size_t>(header.tokens)};
  for (int32_t id : tokens_)
    if (id < 0 || id >= config.vocab)
      throw Error("{}: is damaged: token id {}, the model knows ids from 0 to {}; take another copy", path, id, config.vocab - 1);
  position_ = header.position, reach_ = header.reach;
  image_ = file_.bytes().subspan(sizeof header + tokens_.size_bytes());
}

}  // namespace bamba
