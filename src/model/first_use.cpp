// SPDX-License-Identifier: Apache-2.0
// Checking what was not checked yet, over the pool; of several errors the first in order.
#include "model/first_use.h"

#include "core/check.h"

namespace quadrille::model {

using formats::PreparedFile;
using formats::PreparedSection;

namespace {

Status check_sections(const PreparedFile& file, ThreadPool* pool, std::span<const PreparedSection* const> sections) {
  std::vector<Status> status(sections.size());
  const auto check = [&](int64_t i) { status[static_cast<size_t>(i)] = file.check(*sections[static_cast<size_t>(i)]); };
  if (sections.size() == 1) {
    check(0);
  } else {
    pool->run(static_cast<int64_t>(sections.size()), check);
  }
  for (const Status& one : status) QD_TRY_STATUS(one);
  return {};
}

}  // namespace

class FirstUse::Once {
 public:
  Once(const PreparedFile& file, ThreadPool* pool, std::vector<const PreparedSection*> sections)
      : file_(file), pool_(pool), sections_(std::move(sections)), is_checked_(sections_.size()) {}

  bool is_done() const { return checked_ == sections_.size(); }
  size_t size() const { return sections_.size(); }

  // Notes that a section is wanted; nothing when it was checked.
  void want(size_t index) {
    if (is_checked_[index]) return;
    is_checked_[index] = true;
    wanted_.push_back(index);
  }
  // Checks what is wanted. What is found damaged stays unchecked, so that asking again finds it again.
  Status check() {
    if (wanted_.empty()) return {};
    std::vector<const PreparedSection*> sections;
    for (const size_t index : wanted_) sections.push_back(sections_[index]);
    Status status = check_sections(file_, pool_, sections);
    if (status) {
      checked_ += wanted_.size();
    } else {
      for (const size_t index : wanted_) is_checked_[index] = false;
    }
    wanted_.clear();
    return status;
  }

 private:
  const PreparedFile& file_;
  ThreadPool* pool_;
  std::vector<const PreparedSection*> sections_;
  std::vector<bool> is_checked_;
  std::vector<size_t> wanted_;
  size_t checked_ = 0;
};

class FirstUse::Experts final : public moe::ExpertGuard {
 public:
  explicit Experts(Once once) : once_(std::move(once)) {}
  Status before_use(std::span<const int64_t> offsets) override {
    if (once_.is_done()) return {};
    QD_CHECK(offsets.size() == once_.size() + 1, "a guard knows every expert of its layer");
    for (size_t e = 0; e < once_.size(); ++e) {
      if (offsets[e] < offsets[e + 1]) once_.want(e);
    }
    return once_.check();
  }
  Status check_all() {
    for (size_t e = 0; e < once_.size(); ++e) once_.want(e);
    return once_.check();
  }

 private:
  Once once_;
};

FirstUse::FirstUse(std::shared_ptr<const PreparedFile> file, ThreadPool* pool) : file_(std::move(file)), pool_(pool) {}
FirstUse::~FirstUse() = default;

void FirstUse::set_embedding(std::vector<const PreparedSection*> pieces, int64_t rows) {
  embedding_ = std::make_unique<Once>(*file_, pool_, std::move(pieces));
  embedding_rows_ = rows;
}

moe::ExpertGuard* FirstUse::add_experts(std::vector<const PreparedSection*> experts) {
  experts_.push_back(std::make_unique<Experts>(Once(*file_, pool_, std::move(experts))));
  return experts_.back().get();
}

Status FirstUse::before_step(std::span<const int32_t> ids) {
  if (!every_token_.empty()) {
    QD_TRY_STATUS(check_sections(*file_, pool_, every_token_));
    every_token_.clear();
  }
  if (embedding_ == nullptr || embedding_->is_done()) return {};
  for (const int32_t id : ids) embedding_->want(static_cast<size_t>(id / embedding_rows_));
  return embedding_->check();
}

Status FirstUse::check_all() {
  QD_TRY_STATUS(before_step({}));
  for (size_t i = 0; embedding_ != nullptr && i < embedding_->size(); ++i) embedding_->want(i);
  if (embedding_ != nullptr) QD_TRY_STATUS(embedding_->check());
  for (const auto& experts : experts_) QD_TRY_STATUS(experts->check_all());
  return {};
}

}  // namespace quadrille::model
